"""Sets that Minari collects from real environments, in each of its storages."""

import json
import shutil
from collections import OrderedDict

import gymnasium
import h5py
import minari
import numpy as np
import pytest

from qgf.data import Fields, from_arrays, open_recording
from qgf.errors import UserError

# What it would like to know about a set beyond its steps.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")
STEPS = 8  # at which an episode is truncated


class Seen(gymnasium.ObservationWrapper):
    """The observation as a dictionary, with a camera."""

    def __init__(self, env):
        super().__init__(env)
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            OrderedDict(
                state=env.observation_space,
                zoom=box(0, 9, (1,)),
                camera=box(0, 255, (32, 32, 3), np.uint8),
                inner=gymnasium.spaces.Dict({"x": box(-9, 9, (2, 2))}),
            )
        )

    def observation(self, observation):
        x = np.resize(observation, (2, 2)).astype(np.float32)
        camera = np.zeros((32, 32, 3), np.uint8)
        zoom = np.full(1, observation[0] + 1, np.float32)
        return {"state": observation, "zoom": zoom, "camera": camera, "inner": {"x": x}}


def collect(monkeypatch, folder, kind, env, *, action=None, episodes=4, infos=False):
    """Collect episodes of random actions; return the set's folder and what went in."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    collector = minari.DataCollector(env, record_infos=infos, data_format=kind)
    written = []
    env.action_space.seed(0)
    for episode in range(episodes):
        observation, _ = collector.reset(seed=episode)
        seen, done = [observation], []
        while True:
            chosen = env.action_space.sample() if action is None else action(episode)
            observation, reward, terminated, truncated, info = collector.step(chosen)
            seen.append(observation)
            done.append((chosen, reward, terminated, info.get("success", 0.0)))
            if terminated or truncated:
                break
        written.append((seen, done))
    collector.create_dataset("qgf/tiny-v0")
    return folder / "qgf/tiny-v0", written


@pytest.fixture
def pendulum():
    """Pushed hard it falls, and the task ends; left alone it stands until it is cut off."""
    return gymnasium.make("InvertedPendulum-v5", max_episode_steps=STEPS)


def push(episode):
    return np.full(1, 3.0 * (episode % 2), np.float32)


@pytest.mark.parametrize("kind", ["hdf5", "arrow", "parquet"])
def test_every_field_is_what_was_written(kind, monkeypatch, tmp_path, pendulum):
    folder, written = collect(monkeypatch, tmp_path, kind, pendulum, action=push)
    recording = open_recording(folder)
    found = recording.trajectories()
    row = 0
    for seen, done in written:
        for observation, (action, reward, terminated, _) in zip(seen, done, strict=False):
            np.testing.assert_array_equal(found.observation[row], np.float32(observation))
            np.testing.assert_array_equal(found.action[row], action)
            assert found.reward[row] == np.float32(reward)
            assert found.terminated[row] == terminated
            assert not found.last[row]
            row += 1
        np.testing.assert_array_equal(found.observation[row], np.float32(seen[-1]))
        assert found.last[row] and not found.terminated[row]
        row += 1
    assert row == len(found.last) and found.unseen is None
    # A recording that stops is not a task that ends.
    assert found.terminated[found.ends - 1].tolist() == [False, True, False, True]
    assert found.lengths[0] == STEPS and found.lengths[1] < STEPS
    assert all(path.is_file() for path in recording.files)
    assert open_recording(folder / "data").last.tolist() == found.last.tolist()


@pytest.mark.parametrize("kind", ["hdf5", "arrow"])
def test_dictionaries_and_cameras(kind, monkeypatch, tmp_path, pendulum):
    folder, written = collect(monkeypatch, tmp_path, kind, Seen(pendulum), episodes=2)
    recording = open_recording(folder)
    # By default in the order in which Gymnasium flattens the space.
    parts = [(n, part) for n, part in Seen(pendulum).observation_space.items() if n != "camera"]
    space = gymnasium.spaces.Dict(OrderedDict(parts))
    default = recording.trajectories().observation
    for row, observation in enumerate(o for seen, _ in written for o in seen):
        flat = gymnasium.spaces.flatten(space, observation)
        np.testing.assert_array_equal(default[row], np.float32(flat))
    fields = Fields(obs=("observations/state", "observations/inner/x"))
    found = recording.trajectories(fields).observation
    states = [observation for seen, _ in written for observation in seen]
    for row, observation in enumerate(states):
        np.testing.assert_array_equal(found[row, :4], np.float32(observation["state"]))
        np.testing.assert_array_equal(found[row, 4:], observation["inner"]["x"].reshape(-1))
    with pytest.raises(UserError, match=r"observations/camera cannot be used: .* JPEG"):
        recording.trajectories(Fields(obs=("observations/camera",)))


class Solves(gymnasium.Wrapper):
    """Success is an entry of info, at the third step."""

    def reset(self, **options):
        self.step_number = 0
        return self.env.reset(**options)[0], {"success": 0.0}

    def step(self, action):
        *rest, _ = self.env.step(action)
        self.step_number += 1
        return *rest, {"success": float(self.step_number >= 3)}


@pytest.mark.parametrize("kind", ["hdf5", "arrow"])
def test_success_in_the_infos_is_that_of_the_action(kind, monkeypatch, tmp_path, pendulum):
    env = Solves(pendulum)
    folder, written = collect(
        monkeypatch, tmp_path, kind, env, action=lambda _: np.zeros(1, "f4"), infos=True
    )
    found = open_recording(folder).trajectories(Fields(reward="success"))
    expected = [bool(success) for _, done in written for *_, success in [*done, (0,)]]
    assert found.success.tolist() == expected
    assert np.flatnonzero(found.reward).tolist() == [
        2 + number * (STEPS + 1) for number in range(4)
    ]


@pytest.mark.parametrize("kind", ["hdf5", "arrow"])
def test_actions_that_are_choices_are_refused(kind, monkeypatch, tmp_path):
    env = gymnasium.make("CartPole-v1", max_episode_steps=3)
    folder, _ = collect(monkeypatch, tmp_path, kind, env, episodes=2)
    recording = open_recording(folder)
    with pytest.raises(UserError, match=r"it is a choice \(Discrete of 2\), not an amount"):
        recording.trajectories()


@pytest.fixture
def folder(monkeypatch, tmp_path, pendulum):
    return collect(monkeypatch, tmp_path, "hdf5", pendulum, action=push)[0]


def test_a_set_that_is_not_whole(folder):
    metadata = folder / "data/metadata.json"
    main = folder / "data/main_data.hdf5"
    copy = shutil.copy(main, folder / "copy")
    with h5py.File(main, "a") as file:
        del file["episode_3"]
    with pytest.raises(UserError, match=r"holds 3 episodes, but its metadata.json says 4"):
        open_recording(folder)
    shutil.copy(copy, main)
    with h5py.File(main, "a") as file:
        del file["episode_2/rewards"]
    with pytest.raises(UserError, match="has no rewards in episode_2"):
        open_recording(folder)
    shutil.copy(copy, main)
    with h5py.File(main, "a") as file:
        rows = file["episode_2/observations"][()]
        del file["episode_2/observations"]
        file["episode_2/observations"] = rows[:-2]
    with pytest.raises(UserError, match="episode_2 has 8 actions, but observations of shape"):
        open_recording(folder).trajectories()
    main.write_bytes(main.read_bytes()[:3000])
    with pytest.raises(UserError, match="cannot be read"):
        open_recording(folder)
    written = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**written, "data_format": "tape"}))
    with pytest.raises(UserError, match="stored as 'tape'; qgf reads hdf5, arrow, parquet"):
        open_recording(folder)
    metadata.write_text(json.dumps({**written, "action_space": "{"}))
    shutil.copy(copy, main)
    with pytest.raises(UserError, match="its action_space is not readable"):
        open_recording(folder)


def test_two_formats_in_one_folder(folder):
    """The reader is chosen by content, so what fits two of them is told."""
    (folder / "meta").mkdir()
    (folder / "meta/info.json").write_text("{}")
    with pytest.raises(UserError, match=r"fits several formats .*minari.*lerobot"):
        open_recording(folder)


def test_minari_s_own_arrays_in_memory_are_the_same(folder):
    """What Minari's loader gives, put in as arrays, are the same episodes."""
    episodes = [*minari.load_dataset("qgf/tiny-v0").iterate_episodes()]
    arrays = from_arrays(
        np.concatenate([e.observations[:-1] for e in episodes]),
        np.concatenate([e.actions for e in episodes]),
        rewards=np.concatenate([e.rewards for e in episodes]),
        terminals=np.concatenate([e.terminations for e in episodes]),
        timeouts=np.concatenate([e.truncations for e in episodes]),
        next_observations=np.concatenate([e.observations[1:] for e in episodes]),
    ).trajectories()
    for name, array in open_recording(folder).trajectories().arrays().items():
        np.testing.assert_array_equal(array, arrays.arrays()[name])
