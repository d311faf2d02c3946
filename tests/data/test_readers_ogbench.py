"""OGBench's files: read as its own loader reads them; the last row of an episode is a state."""

import shutil
from pathlib import Path

import numpy as np
import ogbench.utils
import pytest

from qgf.data import Fields, held_out, open_recording
from qgf.errors import UserError

FOLDER = Path(__file__).parent.parent / "fixtures/version-0.1.0/data"
NAME = "cube-single-play-v0"


@pytest.fixture
def folder(tmp_path):
    """Files without a manifest, as downloaded."""
    return shutil.copytree(FOLDER, tmp_path / "d", ignore=shutil.ignore_patterns("*.json"))


def change(path, **changed):
    with np.load(path) as file:
        arrays = {**file, **changed}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize("with_manifest", [True, False])
def test_transitions_are_those_of_ogbench_s_loader(with_manifest, folder):
    source = FOLDER if with_manifest else folder
    recording = open_recording(source)
    found = recording.trajectories(state=("qpos",))
    step = 0
    for file in (f"{NAME}.npz", f"{NAME}-val.npz"):
        with np.load(source / file) as arrays:
            qpos = arrays["qpos"]
            rows = slice(step, step + len(qpos))
            np.testing.assert_array_equal(found.state["qpos"][rows], qpos)
        theirs = ogbench.utils.load_dataset(source / file)
        ours = np.flatnonzero(~found.last[rows]) + step
        np.testing.assert_array_equal(found.observation[ours], theirs["observations"])
        np.testing.assert_array_equal(found.observation[ours + 1], theirs["next_observations"])
        np.testing.assert_array_equal(found.action[ours], theirs["actions"])
        step += len(qpos)
    assert step == len(found.last) and found.unseen is None
    assert found.reward is None
    # A recording that stops is not a task that ends: nobody says that one did.
    assert found.terminated is None
    assert {path.suffix for path in recording.files} <= {".npz", ".json"}
    assert held_out(recording).tolist() == [len(found.ends) - 1]


def test_rewards_and_masks_of_a_file(folder):
    path = folder / f"{NAME}.npz"
    with np.load(path) as file:
        rows = len(file["terminals"])
    masks = (np.arange(rows) % 7 > 0).astype(np.float32)
    rewards = np.arange(rows, dtype=np.float32)
    change(path, rewards=rewards, masks=masks)
    (folder / f"{NAME}-val.npz").unlink()
    found = open_recording(path).trajectories()
    np.testing.assert_array_equal(found.reward, rewards)
    np.testing.assert_array_equal(found.terminated, masks == 0)
    assert not found.terminated[found.ends].all()


def test_a_file_and_its_folder_are_the_same(folder):
    whole, file = open_recording(folder), open_recording(folder / f"{NAME}.npz")
    assert whole.files == file.files and whole.last.tolist() == file.last.tolist()


@pytest.mark.parametrize("tail", ["", "-val"])
def test_files_that_do_not_fit(tail, folder):
    path = folder / f"{NAME}{tail}.npz"
    with np.load(path) as file:
        terminals, observations = file["terminals"], file["observations"]
    for changed, said in [
        ({"terminals": np.zeros_like(terminals)}, "no mark of an end of an episode"),
        ({"terminals": np.roll(terminals, -1)}, "does not end with a terminal row; it is cut off"),
        ({"observations": observations[:-1]}, "fields of different lengths"),
        ({"observations": observations[:, :-1]}, "changes its shape|cut off"),
    ]:
        if "shape" in said and not tail:
            continue
        change(path, **{"terminals": terminals, "observations": observations, **changed})
        with pytest.raises(UserError, match=said):
            open_recording(folder)


def test_a_file_that_differs_from_its_manifest(tmp_path):
    copy = shutil.copytree(FOLDER, tmp_path / "copy")
    path = copy / f"{NAME}.npz"
    with np.load(path) as file:
        change(path, observations=file["observations"] + 1)
    with pytest.raises(UserError, match="differs from what"):
        open_recording(copy)


def test_states_are_observations_too(folder):
    found = open_recording(folder).trajectories(Fields(obs=("qvel", "qpos")))
    with np.load(folder / f"{NAME}.npz") as file:
        np.testing.assert_array_equal(found.observation[0, :20], np.float32(file["qvel"][0]))
        np.testing.assert_array_equal(found.observation[0, 20:], np.float32(file["qpos"][0]))
