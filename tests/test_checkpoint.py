"""Run folders: what is read back, kept, and said about damage."""

import json
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import TINY

from qgf._files import write_json
from qgf.checkpoint import (
    best_step,
    find_checkpoint,
    list_checkpoints,
    load_arrays,
    load_learner,
    load_record,
    prune_checkpoints,
    save_arrays,
    save_checkpoint,
)
from qgf.config import Spec
from qgf.errors import UserError
from qgf.learners.iql import IQL


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def last(run, name="critic"):
    return run / "checkpoints" / "00000040" / f"{name}.safetensors"


def test_arrays_come_back_bit_for_bit(tmp_path):
    learner = IQL.create(Spec(4, 3, 2), TINY, jax.random.key(0))
    save_arrays(tmp_path / "a.safetensors", learner)
    shapes = eqx.filter_eval_shape(lambda: IQL.create(Spec(4, 3, 2), TINY, jax.random.key(1)))
    for like in (shapes, IQL.create(Spec(4, 3, 2), TINY, jax.random.key(1))):
        assert eqx.tree_equal(load_arrays(tmp_path / "a.safetensors", like), learner)
    names = set(safetensors.numpy.load_file(tmp_path / "a.safetensors"))
    assert {"q.members.0.kernels.0", "target_q.members.1.scales.1", "v.mlp.biases.2"} < names


def test_a_seed_of_a_run(run):
    both, one = load_learner(run, "critic"), load_learner(run, "critic", seeds=[5])
    ours = jax.tree.leaves(jax.tree.map(lambda x: x[1:], eqx.filter(both, eqx.is_array)))
    theirs = jax.tree.leaves(eqx.filter(one, eqx.is_array))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(ours, theirs, strict=True))
    assert one.config == TINY


def test_last_best_and_numbered(run):
    states = list_checkpoints(run)
    assert list(states) == [20, 40]
    best = min(states, key=lambda step: states[step]["validation_loss"])
    names = {
        which: int(find_checkpoint(run, which).name) for which in ("last", "best", "20", "0040")
    }
    assert names == {"last": 40, "best": best, "20": 20, "0040": 40}
    with pytest.raises(UserError, match="no checkpoint '30'; it has 20, 40, last, best"):
        find_checkpoint(run, "30")
    with pytest.raises(UserError, match="no checkpoint 'first'"):
        find_checkpoint(run, "first")


def test_pruning_keeps_the_last_and_the_best(tmp_path):
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: 1.5, 50: 4.0}
    for step, loss in losses.items():
        save_checkpoint(tmp_path, step, {"x": {"y": jnp.ones(2)}}, {"validation_loss": loss})
    (tmp_path / "checkpoints" / ".writing-abc").mkdir()
    assert best_step(list_checkpoints(tmp_path)) == 20
    prune_checkpoints(tmp_path, keep=2)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["00000020", "00000040", "00000050"]


def test_half_a_checkpoint_is_none(tmp_path, monkeypatch):
    trees = {"x": {"y": jnp.ones(2)}}
    save_checkpoint(tmp_path, 10, trees, {"validation_loss": 1.0})

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*x\.safetensors: No space left on device"):
        save_checkpoint(tmp_path, 20, trees, {"validation_loss": 1.0})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000010"]


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*Not a directory"):
        save_checkpoint(tmp_path / "file", 10, {}, {})


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
    record = json.loads((copied / "config.json").read_text())
    record["config"]["width"] = 17
    write_json(copied / "config.json", record)
    with pytest.raises(
        UserError, match=r"does not fit its config.json: q\.members\.0\.biases\.0 differs"
    ):
        load_learner(copied, "critic")


def test_missing_arrays(copied):
    last(copied).unlink()
    with pytest.raises(UserError, match=r"critic\.safetensors is missing"):
        load_learner(copied, "critic")


def test_damaged_state(copied):
    (copied / "checkpoints" / "00000020" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json is not readable JSON"):
        list_checkpoints(copied)


@pytest.mark.parametrize(
    "text, message",
    [("{", "is not readable JSON"), ("[]", "not a run's"), ('{"env": 1}', "it has no 'borrowed'")],
)
def test_damaged_record(text, message, copied):
    (copied / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_record(copied)


def test_no_run(tmp_path):
    with pytest.raises(UserError, match=r"holds no run \(no config.json\); train one"):
        load_record(tmp_path)
    with pytest.raises(UserError, match="does not exist; train one"):
        load_record(tmp_path / "x")
    with pytest.raises(UserError, match="has no checkpoint; train it"):
        find_checkpoint(tmp_path)
