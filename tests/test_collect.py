"""Collection against OGBench: its loader, its environments, and its generation loop."""

import dataclasses
import functools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile

import gymnasium
import numpy as np
import ogbench
import pytest
from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

import qgf.tasks.ogbench.collect
from qgf.data.manifest import Manifest, load_manifest
from qgf.errors import UserError
from qgf.executor import Processes
from qgf.files import TEMPORARY, locked
from qgf.tasks import find_task
from qgf.tasks._workers import Workers
from qgf.tasks.ogbench.collect import _cube_stays_visible, _episode, collect, episode_seed
from qgf.tasks.ogbench.envs import EnvName, state_widths

small = functools.partial(
    collect,
    "cube-single-play-v0",
    episodes=5,
    val_episodes=3,
    shard_episodes=2,
    executor=None,
    seed=3,
    steps=40,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A collection that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "data"
    small(out=folder)
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def ogbench_episode(env, agents, seed, steps, *, noisy=False, p_random=0.0, p_stack=None):
    """One episode as OGBench's generate_manipspace.py makes it, after seeding."""
    *words, env_seed = episode_seed(seed, "train", 0)
    np.random.seed(words)
    observation, info = env.reset(seed=int(env_seed))
    p_stack = 0.5 if p_stack is None else np.random.uniform(*p_stack)
    xi = np.random.uniform(0, 0.1) if noisy else None
    agent = agents[info["privileged/target_task"]]
    agent.reset(observation, info)
    data = {key: [] for key in ("observations", "actions", "terminals", "qpos", "qvel")}
    data["button_states"] = []
    for _ in range(steps):
        if np.random.rand() < p_random:
            action = env.action_space.sample()
        else:
            action = np.array(agent.select_action(observation, info))
            if noisy:
                spread = [xi, xi, xi, xi * 3, xi * 10]
                action = action + np.random.normal(0, spread, action.shape)
        action = np.clip(action, -1, 1)
        data["observations"].append(observation)
        data["actions"].append(action)
        observation, _, terminated, truncated, info = env.step(action)
        data["terminals"].append(terminated or truncated)
        data["qpos"].append(info["prev_qpos"])
        data["qvel"].append(info["prev_qvel"])
        data["button_states"].append(info.get("prev_button_states"))
        if agent.done:
            target = env.unwrapped.set_new_target(p_stack=p_stack)
            agent = agents[target[1]["privileged/target_task"]]
            agent.reset(*target)
    return data


def oracles(env, name):
    """The oracles of OGBench's script, with its default settings."""
    plan = {"env": env, "noise": 0.1, "noise_smoothing": 0.5}
    markov = {"env": env, "min_norm": 0.4}
    return {
        "cube-double-play-v0": {"cube": CubePlanOracle(**plan)},
        "cube-single-noisy-v0": {"cube": CubeMarkovOracle(**markov)},
        "puzzle-3x3-noisy-v0": {"button": ButtonMarkovOracle(gripper_always_closed=True, **markov)},
        "scene-play-v0": {
            "cube": CubePlanOracle(**plan),
            "button": ButtonPlanOracle(**plan),
            "drawer": DrawerPlanOracle(**plan),
            "window": WindowPlanOracle(**plan),
        },
    }[name]


@pytest.mark.parametrize(
    "name, settings",
    [
        ("cube-double-play-v0", {"p_stack": (0.0, 0.25)}),
        ("cube-single-noisy-v0", {"noisy": True, "p_random": 0.1}),
        ("puzzle-3x3-noisy-v0", {"noisy": True, "p_random": 0.2}),
        ("scene-play-v0", {}),
    ],
)
def test_episode_equals_that_of_ogbench(name, settings, tmp_path, monkeypatch):
    seed, steps = 11, 250
    env = ogbench.make_env_and_datasets(
        name,
        env_only=True,
        disable_env_checker=True,
        mode="data_collection",
        terminate_at_goal=False,
        max_episode_steps=steps,
    )
    # OGBench draws random actions without a seed; here they come from ours.
    space = gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32)
    env_seed = int(episode_seed(seed, "train", 0)[-1])
    space.seed(int(np.random.SeedSequence([env_seed, 1]).generate_state(1)[0]))
    monkeypatch.setattr(type(env.unwrapped), "action_space", space)
    expected = ogbench_episode(env, oracles(env, name), seed, steps, **settings)

    collect(name, tmp_path, 1, 1, 1, None, seed, steps)
    with np.load(tmp_path / f"{name}.npz") as actual:
        assert set(actual) == expected.keys() - (
            set() if "button_states" in actual else {"button_states"}
        )
        widths = {key: actual[key].shape[1] for key in actual if key != "terminals"}
        assert widths == state_widths(env)
        for key in actual:
            dtype = {"terminals": bool, "button_states": np.int64}.get(key, np.float32)
            assert actual[key].dtype == dtype
            np.testing.assert_array_equal(actual[key], np.array(expected[key], dtype))


def test_bytes_do_not_depend_on_workers(whole, tmp_path):
    manifest = small(out=tmp_path, executor=Processes(2))
    assert contents(tmp_path) == contents(whole)
    assert [shard.file for shard in manifest.shards] == [
        f"cube-single-play-v0-00{i}{val}.npz" for i in range(3) for val in ("", "-val")
    ]
    assert [shard.episodes for shard in manifest.shards] == [2, 1, 2, 1, 1, 1]
    assert manifest == load_manifest(tmp_path)
    episodes = []
    for split in ("train", "val"):
        for shard in manifest.split(split):
            with np.load(tmp_path / shard.file, allow_pickle=False) as data:
                episodes += np.split(data["qpos"], shard.episodes)
                assert np.flatnonzero(data["terminals"]).tolist() == [
                    40 * (i + 1) - 1 for i in range(shard.episodes)
                ]
    assert len({episode.tobytes() for episode in episodes}) == 8  # no seed is used twice
    name, numbers = EnvName.parse("cube-single-play-v0"), {"train": range(5), "val": range(3)}
    seeds = [episode_seed(3, split, i) for split, every in numbers.items() for i in every]
    np.testing.assert_array_equal(episodes, [_episode(name, 40, seed)["qpos"] for seed in seeds])


def test_collecting_leaves_the_callers_random_state_alone(tmp_path):
    np.random.seed(0)
    expected = np.random.RandomState(0).rand()
    collect("puzzle-3x3-play-v0", tmp_path, 1, 1, 1, None, 0, steps=5)
    assert np.random.rand() == expected


def test_ogbench_loads_a_collection_of_one_shard(tmp_path):
    name = "puzzle-3x3-play-v0"
    collect(name, tmp_path, 2, 1, 2, None, 0, steps=30)
    env, train, val = ogbench.make_env_and_datasets(
        "puzzle-3x3-play-singletask-task2-v0", dataset_dir=tmp_path
    )
    size = env.observation_space.shape[0]
    assert train["observations"].shape == train["next_observations"].shape == (58, size)
    assert val["actions"].shape == (29, 5)
    assert np.isin(train["rewards"], range(-9, 1)).all()
    raw = ogbench.load_dataset(tmp_path / f"{name}.npz", add_info=True)
    with np.load(tmp_path / f"{name}.npz") as data:
        np.testing.assert_array_equal(raw["qpos"][29:], data["qpos"][30:59])
        states = data["observations"][:, 19:].reshape(60, 9, 4)[:, :, 1]
        np.testing.assert_array_equal(states, data["button_states"])


COLLECTING = """
from qgf.executor import Processes
from qgf.tasks.ogbench.collect import collect
collect("cube-single-play-v0", DATA, 1, 1, 1, Processes(2), 3, 5)
"""
EVALUATING = """
from qgf.files import TEMPORARY, locked
from qgf.tasks import find_task
from qgf.tasks._workers import Workers
with Workers(find_task("cube-single-singletask-task1-v0"), 1, 1) as workers:
    workers.request({0: ("reset", {"seed": 0})})
"""


@pytest.mark.parametrize(
    "how, what", [("file", COLLECTING), ("input", EVALUATING)], ids=["file", "input"]
)
def test_scripts_need_no_main_guard(how, what, tmp_path):
    data = str(tmp_path / "data")
    text = f"print('once')\nDATA = {data!r}\n{what}\nimport __main__\nprint(__main__.__spec__)"
    script = tmp_path / "script.py"
    script.write_text(text)
    argv, given = ([script], None) if how == "file" else (["-"], text)
    done = subprocess.run(
        [sys.executable, *argv], input=given, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.split() == ["once", "None"], done.stderr


# Lists shards so slowly that a signal sent after the first shard comes before the last.
_SCRIPT = """
import sys, time
from qgf.tasks.ogbench import collect
from qgf.executor import Processes
describe = collect._shard
def slowly(*shard):
    time.sleep(0.5)
    return describe(*shard)
if __name__ == "__main__":
    collect._shard = slowly
    collect.collect("cube-single-play-v0", sys.argv[1], 5, 3, 2, Processes(2), 3, 40)
"""


def descendants(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_broken_off_collection_continues_with_the_same_bytes(how, whole, tmp_path):
    script, folder = tmp_path / "run.py", tmp_path / "data"
    script.write_text(_SCRIPT)
    process = subprocess.Popen([sys.executable, script, folder], stderr=subprocess.DEVNULL)
    first = folder / "cube-single-play-v0-000.npz"
    assert wait_until(first.exists, 60)
    workers = descendants(process.pid)
    process.send_signal(how)
    assert process.wait(20) != 0
    assert len(workers) >= 2
    assert wait_until(lambda: not any(map(alive, workers)), 20)

    stamp = first.stat().st_mtime_ns
    recorded = b"cube-single-play-v0-000.npz" in (folder / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"half finished.*same 'qgf collect' command"):
        load_manifest(folder)
    time.sleep(1.1)  # a temporary file as young as that may be another writer's
    small(out=folder)
    assert contents(folder) == contents(whole)
    assert first.stat().st_mtime_ns == stamp or not recorded


@pytest.mark.parametrize("damaged", [False, True])
def test_only_an_episode_that_is_damaged_is_played_twice(damaged, whole, tmp_path, monkeypatch):
    play, calls = qgf.tasks.ogbench.collect._episode, []

    def fifth_breaks_off(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return play(*arguments)

    monkeypatch.setattr(qgf.tasks.ogbench.collect, "_episode", fifth_breaks_off)
    with pytest.raises(KeyboardInterrupt):
        small(out=tmp_path)
    (left,) = tmp_path.glob("episodes/*/*")
    assert left == tmp_path / "episodes" / "cube-single-play-v0-001" / "2.npz"
    if damaged:
        content = bytearray(left.read_bytes())
        content[len(content) // 2] ^= 1
        left.write_bytes(content)
    small(out=tmp_path)
    assert contents(tmp_path) == contents(whole)
    assert len(calls) == 8 + 1 + damaged


def test_death_of_a_worker_is_reported(tmp_path):
    def kill():
        wait_until(lambda: len(multiprocessing.active_children()) == 2, 60)
        time.sleep(0.5)
        multiprocessing.active_children()[0].kill()

    threading.Thread(target=kill).start()
    with pytest.raises(UserError, match=r"the process of .* died.*same command"):
        small(out=tmp_path, executor=Processes(2))


@pytest.mark.parametrize("when", ["first shard", "first shard listed", "last shard listed"])
def test_folder_that_is_removed_meanwhile(when, whole, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    place, name = (
        (qgf.tasks.ogbench.collect, "_join") if when == "first shard" else (Manifest, "write")
    )
    function = getattr(place, name)
    left = {"first shard": 1, "first shard listed": 2, "last shard listed": 7}[when]

    def remove(*arguments):
        nonlocal left
        result = function(*arguments)
        left -= 1
        if left == 0:
            shutil.rmtree(folder)
        return result

    monkeypatch.setattr(place, name, remove)
    with pytest.raises(UserError, match=r"is gone.*the same command again"):
        small(out=folder)
    assert left <= 0
    small(out=folder)
    assert contents(folder) == contents(whole)


def test_too_little_memory_or_too_few_files(tmp_path, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 2, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot start worker.*Too many open files"):
            small(out=tmp_path / "a", executor=Processes(2))
        with pytest.raises(UserError, match=r"cannot start worker.*use fewer"):
            Workers(find_task("cube-single-v0"), 2, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not multiprocessing.active_children()

    def savez(*_, **__):
        raise MemoryError

    monkeypatch.setattr(np, "savez_compressed", savez)
    with pytest.raises(UserError, match=r"not enough memory.*--shard-episodes"):
        small(out=tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").glob("*.*")] == ["manifest.json"]


def test_what_macos_leaves_in_a_folder_does_not_count(copied, whole, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in (".DS_Store", "._data"):
        (folder / name).write_bytes(b"x")
    small(out=folder, episodes=1, val_episodes=1)
    for path in strip_manifest(copied).glob("*.npz"):
        (copied / f"._{path.name}").write_bytes(b"x")
    assert load_manifest(copied).shards == load_manifest(whole).shards


def test_finished_collection_is_not_made_again(copied):
    before = {path: path.stat().st_mtime_ns for path in copied.glob("*.npz")}
    small(out=copied)
    assert {path: path.stat().st_mtime_ns for path in copied.glob("*.npz")} == before


def test_damaged_shard_is_named_and_made_again(copied, whole):
    path = copied / "cube-single-play-v0-001.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path.name} differs.*make it again"):
        load_manifest(copied)
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name} is missing.*make it again"):
        load_manifest(copied)
    small(out=copied)
    assert contents(copied) == contents(whole)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 4}, "seed 3, not 4"),
        ({"episodes": 6}, "episodes 5, not 6"),
        ({"steps": 41}, "steps 40, not 41"),
    ],
)
def test_other_arguments_do_not_mix_with_what_is_there(change, message, copied):
    before = contents(copied)
    with pytest.raises(UserError, match=message):
        small(out=copied, **change)
    assert contents(copied) == before


def test_other_environment_does_not_mix_with_what_is_there(copied):
    with pytest.raises(UserError, match="name cube-single-play-v0, not scene-play-v0"):
        collect("scene-play-v0", copied, 5, 3, 2, None, 3, 40)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"episodes": 0}, "episodes must lie between 1 and 1,000,000, got 0"),
        ({"val_episodes": 0}, "val_episodes must lie between 1 and 1,000,000, got 0"),
        ({"val_episodes": 2}, "each of the 3 shards needs one"),
        ({"shard_episodes": -1}, "shard_episodes must lie between 1 and .*, got -1"),
        ({"episodes": 10**20}, "episodes must lie between 1 and 1,000,000, got 1000"),
        ({"steps": 0}, "steps must lie between 1 and .*, got 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"shard_episodes": 10**20}, "shard_episodes must .* got 10{20}"),
        ({"steps": 10**20}, "steps must .* got 10{20}"),
    ],
)
def test_senseless_arguments(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        small(out=tmp_path / "data", **change)
    assert not (tmp_path / "data").exists()


def test_far_more_processes_than_processors(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for function in (
        lambda: Processes(33),
        lambda: Workers(find_task("cube-single-v0"), 40, 33),
    ):
        with pytest.raises(UserError, match="33 worker processes are too many for 2 processors"):
            function()


def test_environment_must_exist_and_name_a_type(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'scene-play-v0'"):
        collect("scene-plai-v0", tmp_path, 1, 1, 1, None, 0)
    with pytest.raises(UserError, match=r"write e\.g\. 'scene-play-v0'"):
        collect("scene-v0", tmp_path, 1, 1, 1, None, 0)


def test_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"not empty \(it holds thesis.tex\)"):
        small(out=tmp_path)
    with pytest.raises(UserError, match=r"thesis.tex"):
        small(out=tmp_path / "thesis.tex")
    assert contents(tmp_path) == {"thesis.tex": b"x"}


def test_paths_that_lead_nowhere(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (loop, tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"cannot (read|write)|no dataset folder"):
            load_manifest(path)
        with pytest.raises(UserError, match=r"cannot (read|write)"):
            small(out=path)


def test_unwritable_folder(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot write .*Permission denied"):
        small(out=tmp_path / "data")


def test_full_disk_leaves_nothing_half_written(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*play-v0-000/0\.npz"):
            small(out=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in tmp_path.rglob("*.*")] == [tmp_path / "manifest.json"]


def test_hidden_cube_is_seen():
    qpos = np.zeros((3, 24))
    qpos[:, 14:17] = [0.4, 0.1, 0.02]
    assert _cube_stays_visible(qpos)
    qpos[1, 14:17] = [0.33, -0.35, 0.066]  # in the drawer
    assert _cube_stays_visible(qpos)
    qpos[1, 16] = 0.02  # under it
    assert not _cube_stays_visible(qpos)
    qpos[1, 14:17] = [0.4, 0.3, 0.02]
    assert not _cube_stays_visible(qpos)


def strip_manifest(folder):
    (folder / "manifest.json").unlink()
    return folder


def test_downloaded_files_get_a_manifest(copied, whole):
    made = load_manifest(strip_manifest(copied))
    assert (copied / "manifest.json").exists()
    assert load_manifest(copied) == made
    assert made.shards == load_manifest(whole).shards
    assert (made.name, made.seed, made.plan) == ("cube-single-play-v0", None, {})
    (copied / "cube-single-play-v0-002-val.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"002-val.npz differs.*download it again"):
        load_manifest(copied)


def test_faults_of_downloaded_files(copied):
    path = strip_manifest(copied) / "cube-single-play-v0-001.npz"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    with zipfile.ZipFile(path) as file:  # inside an array that is neither the first nor the last
        damaged[file.getinfo("qpos.npy").header_offset + 200] ^= 1
    for content in (whole[: len(whole) // 2], damaged):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"001.npz cannot be read.*download or collect it"):
            load_manifest(copied)
        assert not (copied / "manifest.json").exists()
    path.write_bytes(whole)
    load_manifest(copied)
    strip_manifest(copied)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"001.npz cannot be read \(Is a directory\)"):
        load_manifest(copied)
    path.rmdir()
    np.savez(path, observations=np.zeros(3))
    with pytest.raises(UserError, match="it has no 'actions'"):
        load_manifest(copied)
    path.rename(copied / "other.npz")
    with pytest.raises(UserError, match="several datasets, cube-single-play-v0, other"):
        load_manifest(copied)
    (copied / "other.npz").unlink()
    (copied / "cube-single-play-v0-002-val.npz").unlink()
    with pytest.raises(UserError, match=r"002-val.npz is missing"):
        load_manifest(copied)


def test_folder_without_dataset(tmp_path):
    with pytest.raises(UserError, match="no dataset folder"):
        load_manifest(tmp_path / "none")
    with pytest.raises(UserError, match="holds no dataset"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 4}')
    with pytest.raises(UserError, match="has format 4"):
        load_manifest(tmp_path)


def reseal(folder, form, edit):
    """Change a manifest as a person would, or one of format 1, which has no checksum."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["format"], content["checksum"]
    edit(content)
    marks = {"format": 1} if form == 1 else {"format": 2, "checksum": "edited"}
    path.write_text(json.dumps({**content, **marks}))


@pytest.mark.parametrize("form", [1, 2])
def test_manifests_of_both_formats_are_read(form, copied, whole):
    reseal(copied, form, lambda content: None)
    assert dataclasses.replace(load_manifest(copied), folder=whole) == load_manifest(whole)
    small(out=copied)
    assert contents(copied) == contents(whole)  # the manifest too: it is written anew


def test_changed_manifest_is_noticed(copied):
    path = copied / "manifest.json"
    text = path.read_text()
    for old, new in (
        ('"seed": 3', '"seed": 2'),
        ('"rows": 80', '"rows": 88'),
        ("001-val", "001-vam"),
    ):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        for function in (load_manifest, lambda folder: small(out=folder)):
            with pytest.raises(UserError, match="its checksum differs"):
                function(copied)


def put(value, *keys):
    """An edit that puts a value at a place of a nested dictionary."""

    def edit(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        *(put(value, "name") for value in (None, 3, ["cube-single-play-v0"])),
        *(put(value, "seed") for value in ("3", 3.0, True, [3])),
        *(put(value, "versions") for value in (None, [1], {"numpy": 2})),
        *(put(value, "plan") for value in (None, {"episodes": "5"}, {"episodes": 5})),
        put(0, "plan", "steps"),
        *(put(value, "shards") for value in (None, {}, [None], [{}], ["x"])),
        *(put(value, "shards", 0, "file") for value in (None, "../x.npz", "", "..")),
        put("cube-single-play-v0-001.npz", "shards", 0, "file"),
        *(put(value, "shards", 0, "split") for value in (None, "test", [])),
        *(put(value, "shards", 0, "episodes") for value in (None, "2", 0, -1, 2.5)),
        *(put(value, "shards", 0, "rows") for value in (None, "a", 0)),
        *(put(value, "shards", 0, "sha256") for value in (None, 3, "")),
        lambda content: content.pop("plan"),
        lambda content: content["shards"][0].pop("rows"),
    ],
)
def test_manifest_of_other_values(edit, copied):
    reseal(copied, 2, edit)
    with pytest.raises(UserError, match=r"is damaged|it is damaged or of another version|differs"):
        load_manifest(copied)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 100_000, "is not readable JSON: it is nested too deeply"),
        ('{"seed": ' + "1" * 5000 + "}", "is not readable JSON"),
        ('{"seed": NaN}', "is not readable JSON"),
        ("", "is not readable JSON"),
        ("null", "is damaged"),
        ("3", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "has no 'name'"),
    ],
)
def test_manifest_that_is_none(text, message, copied):
    (copied / "manifest.json").write_text(text)
    for function in (load_manifest, lambda folder: small(out=folder)):
        with pytest.raises(UserError, match=rf"manifest.json {message}[^\n]*$"):
            function(copied)


def test_one_process_collects_at_a_time(copied, whole):
    with locked(copied), pytest.raises(UserError, match=r"copy is already in use by process \d+"):
        small(out=copied)
    rest = copied / f"{TEMPORARY}rest"
    rest.write_bytes(b"of a killed process")
    os.utime(rest, (0, 0))
    small(out=copied)
    assert contents(copied) == contents(whole)


def test_shards_listed_as_something_else_are_made_again(copied, whole):
    reseal(copied, 1, put(1, "shards", 0, "episodes"))
    small(out=copied)
    assert contents(copied) == contents(whole)
