"""robomimic's documented layout, written by h5py."""

import json

import h5py
import numpy as np
import pytest

from qgf.data import Fields, held_out, open_recording
from qgf.errors import UserError

LENGTHS = {f"demo_{i}": length for i, length in enumerate([3, 2, 4, 2, 2, 2, 2, 2, 2, 2, 5])}


def demos():
    """Episodes 0, 3, 6, … are solved by their last action; dones mark the end of all of them."""
    rng = np.random.default_rng(2)
    for number, (name, length) in enumerate(LENGTHS.items()):
        states = rng.normal(size=(length + 1, 3))
        images = rng.integers(0, 255, (length + 1, 4, 4, 3), np.uint8)
        at_end = np.arange(length) == length - 1
        yield (
            name,
            {
                "obs/eef": states[:-1],
                "next_obs/eef": states[1:],
                "obs/image": images[:-1],
                "next_obs/image": images[1:],
                "obs/grip": states[:-1, 0],
                "next_obs/grip": states[1:, 0],
                "states": rng.normal(size=(length, 5)),
                "actions": rng.uniform(-1, 1, (length, 2)),
                "rewards": (at_end & (number % 3 == 0)).astype(float),
                "dones": at_end.astype(np.int64),
            },
        )


@pytest.fixture
def write(tmp_path):
    def write(without=(), shaped=False, mask=None, **replaced):
        path = tmp_path / "demo.hdf5"
        with h5py.File(path, "w") as file:
            for name, fields in demos():
                for field, array in fields.items():
                    if not field.startswith(tuple(without)):
                        place = f"data/{name}/{field}"
                        file[place] = replaced.get(place.replace("/", "__"), array)
            file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"reward_shaping": shaped}})
            if mask:
                file["mask/train"] = np.array([n for n in LENGTHS if n not in mask], "S")
                file["mask/valid"] = np.array(mask, "S")
        return path

    return write


@pytest.mark.parametrize("next_obs", [True, False])
def test_every_field_is_what_was_written(next_obs, write):
    recording = open_recording(write(without=() if next_obs else ("next_obs",)))
    found = recording.trajectories(state=("states", "obs/image"))
    row = 0
    for _, fields in demos():  # demo_10 comes behind demo_9
        for step in range(len(fields["actions"])):
            eef = np.float32(fields["obs/eef"][step])
            np.testing.assert_array_equal(found.observation[row, :3], eef)
            assert found.observation[row, 3] == np.float32(fields["obs/grip"][step])
            np.testing.assert_array_equal(found.action[row], np.float32(fields["actions"][step]))
            np.testing.assert_array_equal(found.state["states"][row], fields["states"][step])
            image = found.state["obs/image"][row]
            np.testing.assert_array_equal(image, fields["obs/image"][step])
            assert found.reward[row] == fields["rewards"][step]
            assert found.success[row] == (fields["rewards"][step] > 0)
            row += 1
        assert found.last[row]
        final = fields["next_obs/eef" if next_obs else "obs/eef"][-1]
        np.testing.assert_array_equal(found.observation[row, :3], np.float32(final))
        row += 1
    assert row == len(found.last) and found.observation.shape[1] == 4
    assert found.unseen is None if next_obs else found.unseen.tolist() == found.last.tolist()


def test_simulator_states_have_no_last_row(write):
    found = open_recording(write()).trajectories(Fields(obs=("obs/eef", "states")))
    assert found.unseen.tolist() == found.last.tolist()


def test_a_recording_that_stops_is_not_a_task_that_ends(write):
    """`dones` marks every end here; the task ended where the reward says so too."""
    found = open_recording(write()).trajectories()
    expected = [number % 3 == 0 for number in range(len(LENGTHS))]
    assert found.terminated[found.ends - 1].tolist() == expected
    assert found.terminated.sum() == sum(expected)
    success = open_recording(write()).trajectories(Fields(reward="success"))
    assert success.terminated[success.ends - 1].tolist() == expected


def test_shaped_rewards_do_not_say_success(write):
    recording = open_recording(write(shaped=True))
    assert recording.trajectories().terminated is None and recording.success is None
    with pytest.raises(UserError, match="does not say where the task is solved"):
        recording.trajectories(Fields(reward="sparse"))


def test_episodes_set_aside(write):
    assert held_out(open_recording(write(mask=["demo_10", "demo_2"]))).tolist() == [2, 10]
    assert held_out(open_recording(write())).tolist() == [9]
    with pytest.raises(UserError, match="mask/valid names demo_77"):
        open_recording(write(mask=["demo_77"]))


def test_without_rewards_there_is_imitation(write):
    recording = open_recording(write(without=("rewards", "dones")))
    found = recording.trajectories()
    assert found.reward is None and found.terminated is None
    assert recording.rewards() == ("last-step", "success-csv:FILE", "module:function")


def test_a_field_that_some_episodes_lack(write):
    path = write()
    with h5py.File(path, "a") as file:
        del file["data/demo_3/obs/grip"]
    recording = open_recording(path)
    assert recording.observation == ("obs/eef",)
    with pytest.raises(UserError, match="obs/grip cannot be used: not every"):
        recording.trajectories(Fields(obs=("obs/grip",)))
    with h5py.File(path, "a") as file:
        del file["data/demo_3/actions"]
    with pytest.raises(UserError, match="no actions in data/demo_3"):
        open_recording(path)


def test_an_episode_without_steps(write):
    path = write(data__demo_4__actions=np.zeros((0, 2)))
    with pytest.raises(UserError, match="data/demo_4 has no steps; remove it"):
        open_recording(path)
