"""Chunks against a slow loop over what OGBench's own loader returns."""

import dataclasses
import itertools
import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import ogbench
import pytest
from conftest import TASK, TINY
from sources import Episodes

from qgf.data.dataset import Dataset, chunk_returns, returns_to_go
from qgf.data.goals import GoalDataset, GoalDraws
from qgf.data.manifest import Shard, load_manifest
from qgf.data.rotation import rotation
from qgf.data.trajectories import Trajectories
from qgf.errors import UserError
from qgf.run.trainer import train
from qgf.tasks import find_task
from qgf.tasks.ogbench.envs import make_env

H, DISCOUNT = 5, 0.9
NAME = "cube-single-play-v0"


def change(path, edit):
    """Rewrite a shard after `edit` of its arrays."""
    with np.load(path) as file:
        arrays = dict(file)
    edit(arrays)
    np.savez(path, **arrays)


@pytest.fixture
def solved(downloaded):
    """A data set in which the cube sometimes sits at the goal, also at the ends."""
    env = make_env(TASK)
    env.reset(seed=0)
    goal = env.unwrapped._data.mocap_pos[0]

    def edit(arrays):
        first, second = np.flatnonzero(arrays["terminals"])
        for row in (20, 21, 22, 40, first - 1, first, first + 1, second):
            arrays["qpos"][row, 14:17] = goal

    change(downloaded / f"{NAME}.npz", edit)
    return downloaded


def slow_chunks(folder):
    """(obs, action, reward, mask, next_obs) of every chunk, from OGBench's loader."""
    _, train, _ = ogbench.make_env_and_datasets(TASK, dataset_dir=str(folder))
    chunks = []
    for start in range(len(train["observations"]) - H + 1):
        if train["terminals"][start : start + H - 1].any():
            continue  # the next trajectory begins inside
        reward, mask = 0.0, 1.0
        for i in range(H):
            reward += DISCOUNT**i * train["rewards"][start + i]
            if train["masks"][start + i] == 0:
                mask = 0.0
                break
        chunks.append(
            (
                train["observations"][start],
                np.concatenate(train["actions"][start : start + H]),
                reward,
                mask,
                train["next_observations"][start + H - 1],
            )
        )
    return [np.array(column) for column in zip(*chunks, strict=True)]


def all_chunks(folder, env=TASK, length=H):
    dataset = Dataset(find_task(env).open(folder), chunk=length, discount=DISCOUNT)
    chunks = dataset.chunks(dataset.source.split("train"))
    return dataset, chunks, chunks.take(np.arange(len(chunks.start)))


def test_chunks_equal_a_slow_loop_over_ogbenchs_loader(solved):
    _, chunks, batch = all_chunks(solved)
    expected = slow_chunks(solved)
    assert len(chunks.start) == 2 * (100 - H + 1)
    for actual, slow in zip(batch[:5], expected, strict=True):
        np.testing.assert_allclose(actual, slow, rtol=1e-6)
    # Solved at the first, the last and an inner step, and not at all.
    per_chunk = {tuple(np.isin(range(s, s + H), [20, 21, 22, 40, 99, 101])) for s in chunks.start}
    assert len(per_chunk) > 2 * H
    assert 0 < (batch.mask == 0).sum() < len(chunks.start) / 4
    assert batch.reward.max() == 0 and batch.reward.min() == pytest.approx(-4.0951)


def test_gather_equals_slices(solved):
    dataset, chunks, _ = all_chunks(solved)
    with np.load(solved / f"{NAME}.npz") as file:
        raw = dict(file)
    index = np.array([0, 7, 7, len(chunks.start) - 1])
    batch = jax.device_put(chunks).take(jnp.asarray(index))
    for i, row in enumerate(chunks.start[index]):
        assert batch.obs[i].tobytes() == raw["observations"][row].tobytes()
        assert batch.action[i].tobytes() == raw["actions"][row : row + H].tobytes()
        assert batch.next_obs[i].tobytes() == raw["observations"][row + H].tobytes()
    assert dataset.validation().obs.shape == (101, raw["observations"].shape[1])


def test_every_chunk_stays_inside_one_trajectory(data):
    _, chunks, _ = all_chunks(data)
    trajectory = np.repeat(np.arange(4), 101)
    assert (trajectory[chunks.start] == trajectory[chunks.start + H]).all()
    assert len(chunks.start) == len(set(chunks.start.tolist())) == 4 * (101 - H)


def test_samples_are_uniform(data):
    _, chunks, _ = all_chunks(data)
    n = len(chunks.start)
    chunks = jax.device_put(chunks)
    counted = chunks.__class__(
        obs=jnp.arange(len(chunks.obs), dtype=jnp.float32)[:, None],
        action=chunks.action,
        start=chunks.start,
        reward=chunks.reward,
        mask=chunks.mask,
        length=H,
    )
    rows = np.asarray(counted.sample(jax.random.key(0), 100 * n).obs[:, 0], int)
    counts = np.bincount(rows, minlength=len(chunks.obs))[np.asarray(chunks.start)]
    assert counts.sum() == 100 * n and abs(counts - 100).max() < 50


def test_longest_possible_chunk(data):
    _, chunks, _ = all_chunks(data, length=100)
    assert chunks.start.tolist() == [0, 101, 202, 303]
    with pytest.raises(UserError, match=r"chunk of 101 steps \(the longest has 100\)"):
        all_chunks(data, length=101)


def test_without_a_task_there_are_no_rewards(data):
    _, chunks, _ = all_chunks(data, env=NAME)
    assert (chunks.reward == 0).all() and (chunks.mask == 1).all()
    assert (chunks.return_to_go == 0).all()


def test_chunk_returns_by_hand():
    rewards, masks = np.array([-1.0, 0, -1, -1, 0]), np.array([1.0, 0, 1, 1, 1])
    total, alive = chunk_returns(rewards, masks, np.array([0, 1, 2]), 3, 0.5)
    assert total.tolist() == [-1, 0, -1.5] and alive.tolist() == [0, 0, 1]


def test_returns_to_go_equal_a_slow_sum_over_the_rows_of_the_file(solved):
    path = solved / f"{NAME}.npz"
    change(path, lambda arrays: arrays["qpos"].__setitem__((-1, slice(14, 17)), 9))
    _, chunks, batch = all_chunks(solved)
    with np.load(path) as file:
        qpos, terminals = file["qpos"], file["terminals"]
    env = make_env(TASK)
    env.reset(seed=0)
    at_goal = np.linalg.norm(qpos[:, 14:17] - env.unwrapped._data.mocap_pos[0], axis=1) <= 0.04
    cut_off = 0
    for i, row in enumerate(chunks.start):
        total, discount = 0.0, 1.0
        while not at_goal[row]:
            total -= discount
            discount *= DISCOUNT
            if terminals[row]:  # and so on forever
                total -= sum(discount * DISCOUNT**k for k in range(500))
                cut_off += 1
                break
            row += 1
        assert batch.return_to_go[i] == pytest.approx(total, rel=1e-6)
    assert 50 < cut_off < 100 and batch.return_to_go.max() == 0


def test_returns_to_go_by_hand():
    rewards = np.array([-1.0, -2, 0, -1, -4, -1, 0], np.float32)
    masks = np.array([1.0, 1, 0, 1, 1, 1, 0], np.float32)
    terminals = np.array([0, 0, 0, 0, 1, 0, 1])
    # Solved inside and then cut off unsolved: -4 forever is -8. Solved at the very end.
    expected = [-2, -2, 0, -5, -8, -1, 0]
    assert returns_to_go(rewards, masks, terminals, 0.5).tolist() == expected
    undiscounted = returns_to_go(rewards, masks, terminals, 1.0)
    assert undiscounted.tolist() == [-3, -2, 0, -5, -4, -1, 0]


def test_returns_to_go_are_the_chunks_reward_and_what_follows(data):
    _, chunks, batch = all_chunks(data)
    later = {start: value for start, value in zip(chunks.start, batch.return_to_go, strict=True)}
    pairs = [(i, later[s + H]) for i, s in enumerate(chunks.start) if s + H in later]
    index, following = np.array([i for i, _ in pairs]), np.array([value for _, value in pairs])
    expected = batch.reward[index] + DISCOUNT**H * batch.mask[index] * following
    np.testing.assert_allclose(batch.return_to_go[index], expected, rtol=1e-5)


def test_several_shards_are_the_union_of_each(data):
    dataset, _, both = all_chunks(data)
    shards = dataset.source.split("train")
    assert len(shards) == 2
    parts = [dataset.chunks([shard]) for shard in shards]
    parts = [part.take(np.arange(len(part.start))) for part in parts]
    for whole, *pieces in zip(both[:6], *(part[:6] for part in parts), strict=True):
        assert whole.tobytes() == np.concatenate(pieces).tobytes()


def test_groups_fit_the_memory(data):
    dataset, _, _ = all_chunks(data)
    shards = dataset.source.split("train")
    shard_gigabytes = 202 * 4 * (28 + 5 + 4) / 1e9
    assert dataset.groups(2 * shard_gigabytes) == [shards]
    assert dataset.groups(1.99 * shard_gigabytes) == [[shards[0]], [shards[1]]]
    assert dataset.groups(1e-12) == [[shards[0]], [shards[1]]]


def test_rotation_visits_every_group_in_turn(data):
    dataset, _, both = all_chunks(data)
    turns = rotation(dataset, 1e-12, every=10, unit=5, step=0)
    (first, a), (second, b), (third, c) = (next(turns) for _ in range(3))
    assert (a, b, c) == (10, 20, 30)
    union = [part.take(np.arange(part.counts.chunks)) for part in (first, second)]
    for whole, *pieces in zip(both[:6], *(part[:6] for part in union), strict=True):
        assert whole.tobytes() == np.concatenate(pieces).tobytes()
    assert third.obs.tobytes() == first.obs.tobytes()
    resumed, until = next(rotation(dataset, 1e-12, every=10, unit=5, step=35))
    assert resumed.obs.tobytes() == second.obs.tobytes() and until == 40
    whole = rotation(dataset, 1.0, every=10, unit=5, step=0)
    assert next(whole)[0] is next(whole)[0]


class Rows(eqx.Module):
    rows: np.ndarray | jax.Array


class Shards(Dataset):
    """A dataset whose shards are one group each, with chunks that are their numbers of rows."""

    folder = Path("some")

    def __init__(self, *rows):
        self.rows, self.reads = rows, []

    def groups(self, gigabytes):
        return [[Shard(str(i), "train", 1, rows, "")] for i, rows in enumerate(self.rows)]

    def chunks(self, shards, rows=None):
        (shard,) = shards
        if shard.rows < 0:
            raise UserError(f"{shard.file} is damaged")
        self.reads.append(shard.file)
        return Rows(np.array(shard.rows))


def samples(chunks):
    """What training draws: rows are told by their observations."""
    key = jax.random.key(3)
    batches = chunks.sample(key, 40), chunks.sample_all(key, 40)
    return jax.tree.leaves(batches)


def episodes(lengths, unseen):
    rows, random = sum(lengths), np.random.default_rng(len(lengths))
    last = np.isin(np.arange(rows), np.cumsum(lengths) - 1)
    return Trajectories(
        observation=random.normal(size=(rows, 2)).astype(np.float32),
        action=random.normal(size=(rows, 1)).astype(np.float32),
        last=last,
        terminated=random.uniform(size=rows) < 0.1,
        reward=random.normal(size=rows).astype(np.float32),
        unseen=last if unseen else None,
    )


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("goals", [False, True])
def test_groups_of_different_sizes_share_one_program(goals, unseen):
    """And of each the very chunks and goals are drawn that are drawn of it alone."""
    source = Episodes(*(episodes(lengths, unseen) for lengths in ((30, 17), (12,), (25, 9))))
    options = {"draws": GoalDraws()} if goals else {"horizon": 5}
    dataset = (GoalDataset if goals else Dataset)(source, chunk=3, discount=0.9, **options)
    traced = []
    draw = eqx.filter_jit(lambda chunks: traced.append(chunks) or samples(chunks))
    turns = rotation(dataset, 1e-12, every=10, unit=10, step=0)
    for shard, (chunks, _) in zip(dataset.source.split("train"), turns, strict=False):
        alone = samples(jax.device_put(dataset.chunks([shard])))
        assert all(len(leaf) == 47 for leaf in jax.tree.leaves(chunks) if leaf.ndim)
        for ours, theirs in zip(draw(chunks), alone, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert len(traced) == 1


def test_all_rows_are_as_likely_over_a_pass():
    """However many rows a group has: steps on it, each drawing a batch, over its rows."""
    rows = 1000, 250, 1750, 3000
    turns = rotation(Shards(*rows), 1.0, every=600, unit=20, step=0)
    ends = [0, *(until for _, until in itertools.islice(turns, 8))]
    steps = np.diff(ends).reshape(2, 4)
    np.testing.assert_array_equal(steps[0], steps[1])
    np.testing.assert_allclose(steps[0] / rows, steps.sum() / (2 * sum(rows)), rtol=0.02)
    assert not (steps % 20).any()


@pytest.mark.parametrize("step", [0, 7, 40, 60, 61, 139, 140, 500])
def test_what_is_trained_on_depends_on_the_step_alone(step):
    def at(start):
        """The group and end for every step from a start on."""
        seen = {}
        for data, until in rotation(Shards(30, 10, 30), 1.0, every=46, unit=20, step=start):
            for each in range(start, min(until, 600)):
                seen[each] = int(data.rows), until
            start = until
            if until >= 600:
                return seen

    every = at(0)
    assert at(step) == {each: every[each] for each in range(step, 600)}


def test_the_next_group_is_read_while_one_is_trained_on():
    shards = Shards(5, 6, 7)
    turns = rotation(shards, 1.0, every=10, unit=10, step=0)
    assert next(turns)[0].rows == 5
    for _ in range(500):
        if len(shards.reads) > 1:
            break
        time.sleep(0.01)
    assert shards.reads == ["0", "1"]  # before it is asked for
    assert [int(next(turns)[0].rows) for _ in range(3)] == [6, 7, 5]


def test_a_damaged_group_is_told_when_its_turn_comes():
    turns = rotation(Shards(5, -1), 1.0, every=10, unit=10, step=0)
    next(turns)
    with pytest.raises(UserError, match=r"^1 is damaged"):
        next(turns)


def test_data_of_another_environment(data):
    other = "cube-double-play-singletask-task1-v0"
    with pytest.raises(UserError, match=r"are of cube-single-play-v0, but cube-double.* needs"):
        find_task(other).open(data)


def put(name, make):
    """An edit that puts make(array) in an array's place."""
    return lambda arrays: arrays.update({name: make(arrays[name])})


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda a: a["observations"].__setitem__((7, 3), np.nan), "NaN .* observations.* row 7;"),
        (lambda a: a["actions"].__setitem__((9, 0), np.inf), "infinity in actions.* row 9;"),
        (lambda a: a["qpos"].__setitem__((8, 15), np.nan), "NaN .* qpos, first in row 8;"),
        (lambda a: a["qvel"].__setitem__((0, 1), np.inf), "infinity in qvel, first in row 0;"),
        (put("terminals", lambda x: np.where(x, np.nan, 0.0)), "NaN .* terminals.* row 100;"),
        (put("observations", lambda x: x * np.float64(1e300)), "infinity in observations"),
        (lambda a: a["actions"].__setitem__((9, 0), -1.01), r"outside \[-1, 1\].* row 9;"),
        (put("actions", lambda x: np.full(x.shape, -128, np.int8)), r"outside \[-1, 1\]"),
        (lambda a: a["terminals"].__setitem__(-1, False), "does not end with a terminal row"),
        (put("observations", lambda x: x[:0]), "different lengths"),
        (lambda a: a.update({k: x[:0] for k, x in a.items()}), "does not end with a terminal row"),
        (lambda a: a.pop("qpos"), "has no 'qpos', from which rewards"),
        (lambda a: a.update(actions=a["actions"][1:]), "different lengths"),
        (put("observations", lambda x: x[:, :27]), r"\(202, 27\), but .* needs \(rows, 28\)"),
        (put("actions", lambda x: x[:, :4]), r"actions of shape \(202, 4\)"),
        (put("actions", lambda x: x[:, :, None]), r"actions of shape \(202, 5, 1\)"),
        (put("observations", lambda x: x[:, 0]), r"observations of shape \(202,\)"),
        (put("qpos", lambda x: x[:, 0]), r"qpos of shape \(202,\)"),
        (put("observations", lambda x: np.float32(1)), r"observations of shape \(\)"),
        (put("terminals", lambda x: np.float32(1)), r"terminals of shape \(\)"),
        (put("terminals", lambda x: x[:, None]), r"terminals of shape \(202, 1\)"),
        (put("observations", lambda x: x.astype(str)), "observations of type <U32"),
        (put("observations", lambda x: x.astype(complex)), "observations of type complex128"),
        (put("actions", lambda x: np.zeros(len(x), [("a", "f4")])), r"actions of type \[\('a'"),
        (put("qpos", lambda x: x.astype(object)), "cannot be read"),
    ],
)
def test_unfit_shards(edit, message, downloaded):
    change(downloaded / f"{NAME}.npz", edit)
    with pytest.raises(UserError, match=message):
        all_chunks(downloaded)


def test_shard_that_breaks_after_it_was_vouched_for(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "copy")
    dataset, _, _ = all_chunks(folder)
    shard = dataset.source.split("train")[1]
    (folder / shard.file).write_bytes((folder / shard.file).read_bytes()[:1000])
    with pytest.raises(UserError, match=f"{shard.file} cannot be read"):
        dataset.chunks([shard])


def test_more_memory_than_there_is(data, downloaded, monkeypatch):
    with zipfile.ZipFile(downloaded / f"{NAME}.npz", "w") as file:
        for name in ("observations", "actions", "terminals"):
            with file.open(f"{name}.npy", "w") as array:
                header = {"descr": "<f8", "fortran_order": False, "shape": (2**50, 28)}
                np.lib.format.write_array_header_1_0(array, header)
    with pytest.raises(UserError, match=rf"{NAME}.npz does not fit into memory"):
        load_manifest(downloaded)
    assert not (downloaded / "manifest.json").exists()

    def joined(*_):
        raise MemoryError

    monkeypatch.setattr("qgf.data.dataset.joined", joined)
    with pytest.raises(UserError, match=r"2 shards .* do not fit into memory.*--resident-gb"):
        all_chunks(data)


def test_rows_that_the_manifest_does_not_count(data):
    manifest = load_manifest(data)
    dataset = Dataset(find_task(TASK).open(data), chunk=H, discount=DISCOUNT)
    shard = manifest.split("train")[0]
    for change in ({"rows": 203}, {"episodes": 1}):
        with pytest.raises(UserError, match="has 202 rows in 2 episodes, but the manifest says"):
            dataset.chunks([dataclasses.replace(shard, **change)])


def test_other_arrays_of_a_file_are_not_used(downloaded):
    dataset, _, before = all_chunks(downloaded)
    assert dataset.source.rewards == (
        "those of cube-single-singletask-task1-v0, computed from the recorded states"
    )
    (downloaded / "manifest.json").unlink()

    def edit(arrays):
        arrays["rewards"] = np.full(202, np.nan)
        arrays["masks"] = np.zeros(7)
        arrays["metadata/algorithm"] = np.array("SAC")
        arrays["button_states"] = np.zeros(3)  # cube-single has none

    change(downloaded / f"{NAME}.npz", edit)
    dataset, _, after = all_chunks(downloaded)
    for a, b in zip(before[:6], after[:6], strict=True):
        assert a.tobytes() == b.tobytes()
    assert dataset.source.rewards.endswith("; the files' own rewards and masks are not used")
    alone = find_task(NAME).open(downloaded)
    assert alone.rewards == "none; the files' own rewards and masks are not used"


def test_shards_are_labelled_by_one_thread_at_a_time(data, monkeypatch):
    """The environment that labels them is one, and MuJoCo's memory is not shared."""
    source = find_task(TASK).open(data)
    inside, most = [], []

    def relabel(env_id, env, arrays):
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        arrays["rewards"] = np.zeros(len(arrays["terminals"]), np.float32)
        arrays["masks"] = np.ones_like(arrays["rewards"])

    monkeypatch.setattr("qgf.tasks.ogbench._shards.relabel_dataset", relabel)
    shard = source.split("train")[0]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(source.read, [shard] * 3))
    assert most == [1, 1, 1]


def test_training_takes_sparse_rewards(data, tmp_path, monkeypatch):
    def relabel(env_id, env, arrays):
        done = np.arange(len(arrays["terminals"])) % 101 == 50
        arrays["rewards"] = np.where(done, 0, -3).astype(np.float32)
        arrays["masks"] = (1 - done).astype(np.float32)

    datasets = []

    def rotation(dataset, *_):
        datasets.append(dataset)
        raise UserError("seen enough")

    monkeypatch.setattr("qgf.tasks.ogbench._shards.relabel_dataset", relabel)
    monkeypatch.setattr("qgf.run.trainer.rotation", rotation)
    for sparse in (False, True):
        config = dataclasses.replace(TINY, chunk=1, sparse_rewards=sparse)
        with pytest.raises(UserError, match="seen enough"):
            train(TASK, data, tmp_path / "out", config)
    rewards = [dataset.validation().reward for dataset in datasets]
    for reward, size in zip(rewards, (3, 1), strict=True):
        expected = np.full(200, -size)
        expected[[50, 150]] = 0
        np.testing.assert_array_equal(reward, expected)
    assert datasets[1].source.rewards.endswith("states, -1 until it is solved")
