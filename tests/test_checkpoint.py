"""Run folders: what is read back, kept, and said about damage."""

import json
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import TASK, TINY

from qgf.config import Spec
from qgf.errors import UserError
from qgf.files import read_record, write_json, write_record
from qgf.learners.iql import IQL
from qgf.run._validation import validation_batch
from qgf.run.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    load_arrays,
    load_learner,
    load_record,
    prune_checkpoints,
    save_arrays,
    save_checkpoint,
)
from qgf.run.trainer import train


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def last(run, name="critic"):
    return run / "checkpoints" / "00000040" / f"{name}.safetensors"


def edited(path, **changes):
    """Change a record as a person who says so."""
    write_record(path, read_record(path) | changes)


def test_arrays_come_back_bit_for_bit(tmp_path):
    learner = IQL.create(Spec(4, 3, 2), TINY, jax.random.key(0))
    digest = save_arrays(tmp_path / "a.safetensors", learner)
    shapes = eqx.filter_eval_shape(lambda: IQL.create(Spec(4, 3, 2), TINY, jax.random.key(1)))
    for like in (shapes, IQL.create(Spec(4, 3, 2), TINY, jax.random.key(1))):
        assert eqx.tree_equal(load_arrays(tmp_path / "a.safetensors", like, digest), learner)
    names = set(safetensors.numpy.load_file(tmp_path / "a.safetensors"))
    assert {"q.members.0.kernels.0", "target_q.members.1.scales.1", "v.mlp.biases.2"} < names


def test_a_seed_of_a_run(run):
    both, one = load_learner(run, "critic"), load_learner(run, "critic", seeds=[5])
    ours = jax.tree.leaves(jax.tree.map(lambda x: x[1:], eqx.filter(both, eqx.is_array)))
    theirs = jax.tree.leaves(eqx.filter(one, eqx.is_array))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))
    assert one.config == TINY


def test_last_and_numbered(run):
    assert list_checkpoints(run) == [20, 40]
    names = {which: int(find_checkpoint(run, which).name) for which in ("last", "20", "0040")}
    assert names == {"last": 40, "20": 20, "0040": 40}
    with pytest.raises(UserError, match="no checkpoint '30'; it has 20, 40, last"):
        find_checkpoint(run, "30")
    for which in ("first", "\N{SUPERSCRIPT TWO}", "4" * 5000, "-20", ""):
        with pytest.raises(UserError, match=f"no checkpoint '{which}'"):
            find_checkpoint(run, which)


def test_what_is_no_checkpoint_is_passed_over(copied):
    for name in ("00000040.bak", "00000060", "best", "0000004_"):
        (copied / "checkpoints" / name).mkdir()
    shutil.copy(last(copied, "state").with_suffix(".json"), copied / "checkpoints/00000040.bak")
    assert list_checkpoints(copied) == [20, 40]


def test_pruning_keeps_the_last(tmp_path):
    for step in (10, 20, 30, 40):
        save_checkpoint(tmp_path, step, {"x": {"y": jnp.ones(2)}})
    prune_checkpoints(tmp_path, keep=2)
    assert list_checkpoints(tmp_path) == [30, 40]


def test_pruning_drops_what_a_stop_saved_once_a_later_one_is_there(tmp_path):
    for step, kept in ((20, [20]), (30, [20, 30]), (40, [20, 40]), (60, [40, 60])):
        save_checkpoint(tmp_path, step, {"x": {"y": jnp.ones(2)}})
        prune_checkpoints(tmp_path, keep=2, every=20)
        assert list_checkpoints(tmp_path) == kept


def test_a_checkpoint_written_again_replaces_the_old_one(tmp_path):
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, 10, {"x": {"y": jnp.full(2, value)}})
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert safetensors.numpy.load_file(checkpoint / "x.safetensors")["y"].tolist() == [2, 2]


def test_half_a_checkpoint_is_none(tmp_path, monkeypatch):
    trees = {"x": {"y": jnp.ones(2)}}
    save_checkpoint(tmp_path, 10, trees)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*x\.safetensors: No space left on device"):
        save_checkpoint(tmp_path, 20, trees)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000010"]


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*Not a directory"):
        save_checkpoint(tmp_path / "file", 10, {})


@pytest.mark.parametrize("length", [0, 5, 100, 3000])
def test_truncated_arrays(length, copied):
    last(copied).write_bytes(last(copied).read_bytes()[:length])
    with pytest.raises(UserError, match=r"critic\.safetensors is damaged") as error:
        load_learner(copied, "critic")
    assert "\n" not in str(error.value)


def test_header_of_noise(copied):
    content = bytearray(last(copied).read_bytes())
    content[:200] = np.random.default_rng(0).bytes(200)
    last(copied).write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_learner(copied, "critic")


def test_arrays_of_another_shape(copied):
    record = read_record(copied / "config.json")
    record["config"]["width"] = 17
    write_record(copied / "config.json", record)
    with pytest.raises(
        UserError, match=r"does not fit its config.json: q\.members\.0\.biases\.0 differs"
    ):
        load_learner(copied, "critic")


def test_missing_arrays(copied):
    last(copied).unlink()
    with pytest.raises(UserError, match=r"critic\.safetensors does not exist"):
        load_learner(copied, "critic")


def test_every_flipped_bit_of_the_arrays_is_noticed(copied):
    path = last(copied)
    content, rng = bytearray(path.read_bytes()), np.random.default_rng(0)
    for at in [0, len(content) - 1, *rng.integers(len(content), size=20)]:
        content[at] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"critic.safetensors is damaged \(its SHA-256 differs"):
            load_learner(copied, "critic")


def test_flipped_bits_of_a_borrowed_learner_are_noticed(run, data, tmp_path):
    train(TASK, data, tmp_path / "run", TINY, seeds=(3, 5), policy=run)
    path = tmp_path / "run" / "policy.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x60
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"policy.safetensors is damaged \(its SHA-256 differs"):
        load_learner(tmp_path / "run", "policy")


def test_arrays_without_a_hash_are_checked_by_themselves(copied):
    """Runs of format 1 note none."""
    path, state = last(copied), last(copied).with_name("state.json")
    write_json(state, {"step": 40, "validation_loss": 1.0})
    intact = load_learner(copied, "critic")
    assert eqx.tree_equal(intact, load_learner(copied, "critic"))
    arrays = safetensors.numpy.load_file(path)
    name = "q.members.0.biases.0"
    for change, message in (
        (np.full_like(arrays[name], np.nan), f"has NaN or infinity in {name}"),
        (arrays[name].astype(np.int32), f"does not fit its config.json: {name} differs"),
        (arrays[name].astype(np.float64), f"does not fit its config.json: {name} differs"),
        (arrays[name][:, :3].copy(), f"does not fit its config.json: {name} differs"),
    ):
        safetensors.numpy.save_file({**arrays, name: change}, path)
        with pytest.raises(UserError, match=message):
            load_learner(copied, "critic")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not readable JSON"),
        ("null", "is no JSON object"),
        ("[" * 100_000, "is not readable JSON: it is nested too deeply"),
        ('{"step": ' + "1" * 5000 + "}", "is not readable JSON"),
        ('{"step": NaN}', "is not readable JSON: it holds NaN"),
        ('{"step": "40"}', "step is '40' where int belongs"),
        ('{"step": true}', "step is 'True' where int belongs"),
        ('{"stop": 40}', "has no 'step'"),
        ('{"step": 20}', "is of step 20: .* was renamed"),
        ('{"step": 40, "sha256": {}}', "has no 'critic'"),
        ('{"step": 40, "sha256": {"critic": null}}', "critic is 'None' where str belongs"),
        ('{"step": 40, "format": 4}', r"has format 4; this qgf reads 1 to 3: upgrade it"),
        ('{"step": 40, "format": null}', "has format None"),
        ('{"step": 40, "format": 2}', "its checksum differs"),
    ],
)
def test_damaged_state(text, message, copied):
    last(copied).with_name("state.json").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_learner(copied, "critic")
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_damage(copied):
    path = copied / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_record(copied)["seeds"] == [3, 5]


@pytest.mark.parametrize("text, message", [("{", "is not readable JSON"), ("[]", "no JSON object")])
def test_damaged_record(text, message, copied):
    (copied / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_record(copied)


def test_a_changed_record_is_noticed_until_it_is_said(copied):
    path = copied / "config.json"
    text = path.read_text()
    for flipped in (
        text.replace('"discount": 0.99', '"discount": 0.98'),
        text.replace('"checksum"', '"checkson"'),
        text.replace('"format"', '"formas"'),
        text.replace('"format": 3', '"format": 1'),
    ):
        assert flipped != text
        path.write_text(flipped)
        with pytest.raises(UserError, match="checksum"):
            load_record(copied)
    record = json.loads(text)
    record["config"]["discount"], record["checksum"] = 0.98, "edited"
    path.write_text(json.dumps(record))
    assert load_record(copied)["config"]["discount"] == 0.98


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seeds": 3}, "seeds is '3' where list belongs"),
        ({"seeds": []}, "it has no seeds"),
        ({"seeds": ["a"]}, r"seeds\[0\] is 'a' where int belongs"),
        ({"env": None}, "env is 'None' where str belongs"),
        (
            {"learners": {"policy": "bd"}},
            "a policy of a kind that this qgf does not know, 'bd': .* by qgf",
        ),
        ({"spec": {"obs": 28}}, "other sizes than qgf knows"),
        ({"data": {"folder": "d", "name": "n", "sha255": {}}}, "data has no 'sha256'"),
        ({"config": {"widht": 5}}, "a setting that this qgf does not know, 'widht': .* by qgf"),
        ({"config": {"width": "5"}}, "width cannot be '5'"),
        ({"config": {"steps": 5.0}}, "steps cannot be '5.0'"),
        ({"config": {"times": "never"}}, "times cannot be 'never'"),
        ({"config": {"hyper": {"bc": {"times": 1}, "iql": {}}}}, "times cannot be '1'"),
        ({"config": {"hyper": {"bc": {}, "iql": {"widht": 1}}}}, "does not know, 'widht'"),
        ({"config": {"hyper": {"bc": {}, "iql": {"expectile": 2.5}}}}, "expectile must lie in"),
        ({"config": {"hyper": {"bc": {}}}}, "it has hyperparameters of other learners"),
        ({"config": {"hyper": {"bc": []}}}, "bc is '.*' where dict belongs"),
        ({"config": {"width": -5}}, "width must lie between 1 and"),
    ],
)
def test_a_record_of_another_form(change, message, copied):
    edited(copied / "config.json", **change)
    with pytest.raises(UserError, match=message) as error:
        load_record(copied)
    assert "\n" not in str(error.value)


def test_an_older_record_gets_the_defaults_of_what_it_lacks(copied):
    path = copied / "config.json"
    record = read_record(path)
    del record["config"]["target_rate"], record["config"]["hyper"]["iql"]["expectile"]
    write_json(path, record)  # of format 1
    assert load_record(copied)["config"]["target_rate"] == TINY.target_rate
    assert load_record(copied)["config"]["hyper"]["iql"]["expectile"] == 0.9
    assert load_learner(copied, "critic").config == TINY


def test_data_moved_together_with_the_run_are_found(data, tmp_path):
    before, after = tmp_path / "scratch", tmp_path / "home"
    shutil.copytree(data, before / "data")
    train("cube-single-play-v0", before / "data", before / "runs" / "bc", TINY)
    before.rename(after)
    record = load_record(after / "runs" / "bc")
    assert record["data"]["folder"] == str(after / "data")
    batch = validation_batch(record, 5)
    np.testing.assert_array_equal(
        batch.obs,
        validation_batch(record | {"data": record["data"] | {"folder": str(data)}}, 5).obs,
    )
    (after / "data").rename(tmp_path / "elsewhere")
    assert load_record(after / "runs" / "bc")["data"]["folder"] == str(before / "data")


def test_no_run(tmp_path):
    with pytest.raises(UserError, match=r"holds no run \(no config.json\); train one"):
        load_record(tmp_path)
    with pytest.raises(UserError, match="does not exist; train one"):
        load_record(tmp_path / "x")
    with pytest.raises(UserError, match="has no checkpoint; train it"):
        find_checkpoint(tmp_path)
