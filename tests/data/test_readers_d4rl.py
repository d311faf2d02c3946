"""D4RL's layout: as npz, as HDF5, in memory; terminals end the task, timeouts the recording."""

import h5py
import numpy as np
import pytest

from qgf.data import Fields, from_arrays, held_out, open_recording
from qgf.errors import UserError

LENGTHS = (3, 4, 2)
TERMINAL, TIMEOUT = [2], [6]  # the third episode is cut off by the end of the file


def steps():
    rng = np.random.default_rng(1)
    rows = sum(LENGTHS)
    number = np.arange(rows)
    return {
        "observations": rng.normal(size=(rows, 3)),
        "actions": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": np.isin(number, TERMINAL),
        "timeouts": np.isin(number, TIMEOUT),
        "infos/qpos": rng.normal(size=(rows, 2)),
    }


def in_memory(tmp_path, arrays):
    return from_arrays(**arrays)


def as_npz(tmp_path, arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return open_recording(tmp_path / "data.npz")


def as_hdf5(tmp_path, arrays):
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file["metadata/algorithm"] = "SAC"
    return open_recording(tmp_path / "data.hdf5")


WAYS = pytest.mark.parametrize("way", [in_memory, as_npz, as_hdf5])


@WAYS
def test_every_field_is_what_was_written(way, tmp_path):
    arrays = steps()
    recording = way(tmp_path, arrays)
    found = recording.trajectories(state=("infos/qpos",))
    row = step = 0
    for length in LENGTHS:
        for _ in range(length):
            same = np.float32(arrays["observations"][step])
            np.testing.assert_array_equal(found.observation[row], same)
            np.testing.assert_array_equal(found.action[row], arrays["actions"][step])
            assert found.reward[row] == arrays["rewards"][step]
            assert found.terminated[row] == (step in TERMINAL)
            np.testing.assert_array_equal(
                found.state["infos/qpos"][row], arrays["infos/qpos"][step]
            )
            assert not found.last[row] and not found.unseen[row]
            row, step = row + 1, step + 1
        # Nothing was recorded after the last action: the row before is repeated, and says so.
        assert found.last[row] and found.unseen[row] and not found.terminated[row]
        np.testing.assert_array_equal(found.observation[row], found.observation[row - 1])
        row += 1
    assert row == len(found.last)
    assert found.observation.dtype == found.reward.dtype == np.float32


@WAYS
def test_a_recording_that_stops_is_not_a_task_that_ends(way, tmp_path):
    found = way(tmp_path, steps()).trajectories()
    assert found.terminated[found.ends - 1].tolist() == [True, False, False]


@WAYS
def test_next_observations_show_what_followed(way, tmp_path):
    arrays = steps()
    arrays["next_observations"] = arrays["observations"] + 1
    found = way(tmp_path, arrays).trajectories()
    assert found.unseen is None
    ends = np.cumsum(LENGTHS) - 1
    np.testing.assert_array_equal(
        found.observation[found.ends], np.float32(arrays["observations"][ends] + 1)
    )


@WAYS
def test_without_rewards_and_terminals_there_is_imitation(way, tmp_path):
    arrays = steps()
    if way is not in_memory:  # what is told by content needs what tells it
        arrays["terminals"] &= False
    else:
        del arrays["terminals"]
    del arrays["rewards"]
    arrays["timeouts"][2] = True
    recording = way(tmp_path, arrays)
    found = recording.trajectories()
    assert found.reward is None and found.lengths.tolist() == [*LENGTHS]
    assert not np.any(found.terminated)
    assert recording.rewards() == ("last-step", "success-csv:FILE", "module:function")


def test_a_dictionary_is_joined_in_the_order_asked_for():
    arrays = steps()
    arrays["observations"] = {"b": np.ones((9, 2, 2)), "a": np.zeros(9)}
    recording = from_arrays(**arrays)
    assert recording.trajectories().observation[0].tolist() == [1, 1, 1, 1, 0]
    chosen = recording.trajectories(Fields(obs=("observations/a", "observations/b")))
    assert chosen.observation[0].tolist() == [0, 1, 1, 1, 1]


def test_what_has_no_row_for_every_action_is_left_alone(tmp_path):
    recording = as_hdf5(tmp_path, {**steps(), "limits": np.zeros(4)})
    assert "no row for every action" in recording.refused["limits"]
    assert "no row for every action" in recording.refused["metadata/algorithm"]
    assert held_out(recording).tolist() == [2]


def test_layouts_that_cannot_be_told_apart_must_be_named(tmp_path):
    arrays = steps()
    arrays["terminals"] |= arrays.pop("timeouts")
    arrays["terminals"][-1] = True
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=f"fits several formats .*ogbench:{path}"):
        open_recording(path)
    # OGBench's last rows are observations; D4RL's are actions like any other.
    assert open_recording(f"ogbench:{path}").trajectories().lengths.tolist() == [2, 3, 1]
    assert open_recording(f"d4rl:{path}").trajectories().lengths.tolist() == [3, 4, 2]
