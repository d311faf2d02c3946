"""`qgf data inspect` and `qgf data convert`, and the folders that the latter writes."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from write_lerobot import FOLDER as LEROBOT

from qgf.cli import main
from qgf.data import READERS, Fields, from_arrays, held_out, inspect, open_recording
from qgf.data.readers import own
from qgf.errors import UserError
from qgf.files import read_record, sha256, write_record

LENGTHS = [3, 5, 4, 2, 6, 1, 3, 3, 3, 3, 3, 3]


@pytest.fixture
def source(tmp_path):
    """An npz file of twelve episodes, every third of which is solved; D4RL's layout."""
    rng = np.random.default_rng(3)
    rows = sum(LENGTHS)
    ends = np.cumsum(LENGTHS) - 1
    arrays = {
        "observations": rng.normal(size=(rows, 3)),
        "actions": rng.uniform(-1, 1, (rows, 2)),
        "rewards": rng.normal(size=rows),
        "terminals": np.isin(np.arange(rows), ends[::3]),
        "timeouts": np.isin(np.arange(rows), ends),
        "next_observations": rng.normal(size=(rows, 3)),
    }
    arrays["observations"][:, 1] = 0.25
    arrays["actions"][4, 1] = -1.5
    np.savez(tmp_path / "source.npz", **arrays)
    return tmp_path / "source.npz"


@pytest.fixture
def fails(capsys):
    def fails(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in argv])
        printed = capsys.readouterr()
        assert stop.value.code == 2 and printed.out == ""
        assert printed.err.startswith("qgf: ") and printed.err.count("\n") == 1, printed.err
        return printed.err

    return fails


def told(capsys, *argv):
    main([str(word) for word in argv])
    return capsys.readouterr().out


def test_inspect_tells_what_there_is(source, capsys):
    found = json.loads(told(capsys, "data", "inspect", source, "--json"))
    with np.load(source) as file:
        arrays = dict(file)
    assert (found["format"], found["files"]) == ("d4rl", [str(source)])
    assert (found["episodes"], found["validation"]) == (12, 1)
    assert (found["steps"], found["shortest"], found["longest"]) == (39, 1, 6)
    assert found["median"] == 3
    for name in ("observations", "actions", "rewards"):
        field = found["fields"][name]
        assert field["shape"] == [*arrays[name].shape[1:]] and field["dtype"] == "float64"
        assert (field["low"], field["high"]) == (arrays[name].min(), arrays[name].max())
    assert found["used"] == {"obs": "observations", "action": "actions", "reward": "rewards"}
    assert found["constant_obs"] == []  # what follows the last action moves it
    assert found["constant_action"] == [] and found["wide_action"] == [1]
    pieces = np.split(np.float32(arrays["rewards"]), np.cumsum(LENGTHS)[:-1])
    sums = [piece.sum() for piece in pieces]
    np.testing.assert_allclose(found["returns"], [min(sums), np.mean(sums), max(sums)], rtol=1e-6)
    assert (found["ended"], found["solved"], found["unseen"]) == (4 / 12, None, 0)
    assert found["missing"] == []


def test_inspect_as_text(source, capsys):
    text = told(capsys, "data", "inspect", source)
    assert "12 episodes (1 for validation), 39 steps" in text
    assert "1 to 6, median 3" in text
    assert "dimensions of the action outside [-1, 1]: 1" in text
    assert "task ended: 33.33% of the episodes" in text and "solved: nobody says" in text
    assert "for a critic" not in text
    text = told(capsys, "data", "inspect", LEROBOT, "--reward", "sparse")
    assert "observation.images.top  left alone: it is a camera's stream" in text
    assert "reward: sparse, -1 to 0; their sum over an episode -5 to -2, mean -3" in text
    assert "solved: 50% of the episodes" in text


def test_the_python_of_the_page_runs(capsys):
    page = Path(__file__).parent.parent.parent / "docs/your-data.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    found = names["trajectories"]
    assert found.observation.shape == (63, 4) and found.reward.sum() == -57
    assert found.terminated.sum() == 3
    assert {name for name in READERS if f"`{name}`" in page.read_text()} == READERS.keys()


def test_inspect_tells_what_is_odd():
    observations = np.zeros((6, 2))
    observations[:, 0] = range(6)
    made = from_arrays(
        observations,
        np.ones((6, 1)),
        rewards=np.full(6, 0.5),
        timeouts=np.arange(6) % 3 == 2,
        other=np.array([0, np.nan, 2, np.inf, 4, 5]),
        images=np.zeros((6, 2, 2, 3), np.uint8),
    )
    found = inspect(made)
    assert found.constant_obs == (1,) and found.constant_action == (0,)
    assert (found.fields["other"].bad, found.fields["other"].high) == (2, 5)
    assert found.fields["rewards"].low == 0.5  # not the 0 of rows that have no action
    assert found.fields["images"].low is None
    assert found.missing[0].startswith("all rewards are equal (0.5)")
    assert found.unseen == 1


@pytest.mark.parametrize("reward", ["next.reward", "sparse"])
def test_what_was_converted_is_the_same(reward, tmp_path, capsys):
    out = tmp_path / "out"
    fields = ["--obs", "observation.pose", "observation.state", "--reward", reward]
    told(capsys, "data", "convert", LEROBOT, "--out", out, *fields)
    recording = open_recording(LEROBOT)
    obs = ("observation.pose", "observation.state")
    expected = recording.trajectories(Fields(obs=obs, reward=reward))
    back = open_recording(out)
    assert held_out(back).tolist() == [3] and back.format == "qgf"
    for name, array in expected.arrays().items():
        np.testing.assert_array_equal(back.trajectories().arrays()[name], array)
    record = read_record(out / own.FILE)
    assert record["trajectories"] == 1
    assert record["source"]["format"] == "lerobot"
    assert record["source"]["files"] == {str(path): sha256(path) for path in recording.files}


def test_splits_stay_what_they_are(source, tmp_path, capsys):
    told(capsys, "data", "convert", source, "--out", tmp_path / "out")
    original = open_recording(source)
    back = open_recording(tmp_path / "out")
    train = np.setdiff1d(np.arange(12), held_out(original))
    order = np.concatenate([train, held_out(original)])
    assert back.trajectories().lengths.tolist() == [LENGTHS[number] for number in order]
    taken = original.trajectories().take(held_out(original))
    np.testing.assert_array_equal(
        back.trajectories().take(held_out(back)).observation, taken.observation
    )
    assert back.trajectories().unseen is None
    # A recording that stops is not a task that ends: the marks are kept.
    found = back.trajectories()
    assert found.terminated[found.ends - 1].tolist() == [number % 3 == 0 for number in order]


def test_states_and_goals_are_kept(tmp_path):
    made = from_arrays(np.zeros((4, 1)), np.zeros((4, 1)), timeouts=np.ones(4), qpos=np.eye(4))
    parts = made.trajectories(state=("qpos",))
    two = np.arange(16, dtype=np.float32).reshape(8, 2)
    parts = dataclasses.replace(parts, goal=two, achieved=two + 1)
    own.write(tmp_path / "out", {"train": parts}, {})
    back = open_recording(tmp_path / "out")
    found = back.trajectories(state=("state/qpos",))
    np.testing.assert_array_equal(found.goal, parts.goal)
    np.testing.assert_array_equal(found.achieved, parts.achieved)
    np.testing.assert_array_equal(found.state["state/qpos"], parts.state["qpos"])


def test_folders_that_are_not_what_was_written(source, tmp_path, capsys, fails):
    out = tmp_path / "out"
    told(capsys, "data", "convert", source, "--out", out)
    assert "is not empty" in fails("data", "convert", source, "--out", out)
    with np.load(out / "val.npz") as file:
        arrays = {**file}
    np.savez(out / "val.npz", **{**arrays, "action": arrays["action"] + 1})
    assert "val.npz differs from what trajectories.json recorded" in fails("data", "inspect", out)
    (out / "val.npz").unlink()
    assert "val.npz does not exist" in fails("data", "inspect", out)
    record = read_record(out / own.FILE)
    write_record(out / own.FILE, {**record, "trajectories": 2})
    assert "has layout 2; this qgf reads 1" in fails("data", "inspect", out)
    record["files"][0]["file"] = "../train.npz"
    write_record(out / own.FILE, record)
    assert "lists no files in its folder" in fails("data", "inspect", out)


def test_a_failed_conversion_leaves_nothing(source, tmp_path, fails):
    out = tmp_path / "out"
    assert "Did you mean 'rewards'" in fails(
        "data", "convert", source, "--out", out, "--reward", "reward"
    )
    assert not out.exists()


def test_what_cannot_be_asked_for(source, tmp_path, fails):
    assert "does not exist" in fails("data", "inspect", tmp_path / "none")
    assert "no field 'observation'" in fails("data", "inspect", source, "--obs", "observation")
    assert "no field 'action'" in fails("data", "inspect", source, "--action", "action")
    assert "spaces between the values of --obs: --obs a b" in fails(
        "data", "inspect", source, "--obs", "a,b"
    )
    assert "--out" in fails("data", "convert", source)
    assert "inspect" in fails("data")


@pytest.mark.parametrize(
    ("package", "extra", "path"),
    [("h5py", "robomimic", "demo.hdf5"), ("h5py", "minari", "data"), ("pyarrow", "lerobot", None)],
)
def test_a_package_that_is_not_there(package, extra, path, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "demo.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/main_data.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UserError, match=rf"needs {package} .* pip install 'qgf\[{extra}\]'"):
        open_recording(LEROBOT if path is None else tmp_path / path)
