"""Goals of chunks against slow loops over the rows, and against exact frequencies."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sources import Episodes

from qgf.data.dataset import Chunks, trajectory_ends
from qgf.data.goals import FAR, GoalChunks, GoalDataset, GoalDraws
from qgf.data.trajectories import Trajectories
from qgf.learners import DQC
from qgf.tasks import find_task

CHUNK, LONG = 3, 5
LENGTHS = (9, 4, 31)  # rows of the trajectories; the second is just as long as a chunk
ROWS = sum(LENGTHS)
LAST = np.cumsum(LENGTHS) - 1


def rows(p_current=0.2, p_trajectory=0.5, sampling="uniform", discount=0.9):
    """Trajectories whose row r shows [r, -r], has the action r / 100 and the goal 10 r."""
    row = np.arange(ROWS, dtype=np.float32)
    start = [r for r in range(ROWS) if r + CHUNK <= LAST[r <= LAST][0]]
    chunks = Chunks(
        obs=np.stack([row, -row], 1),
        action=row[:, None] / 100,
        start=np.array(start, np.int32),
        reward=np.zeros(len(start), np.float32),
        mask=np.ones(len(start), np.float32),
        length=CHUNK,
    )
    end = np.array([LAST[r <= LAST][0] for r in start], np.int32)
    settings = (LONG, discount, p_current, p_trajectory, sampling)
    return jax.device_put(GoalChunks(chunks, 10 * row[:, None], end, *settings))


@functools.cache
def draw(count, **settings):
    """So many samples, and the rows they start at."""
    batch = eqx.filter_jit(lambda rows: rows.sample(jax.random.key(1), count))(rows(**settings))
    batch = type(batch)(*(np.asarray(x) for x in batch))
    return batch, batch.obs[:, 0].astype(int)


def check_frequencies(values, probabilities):
    """Pearson's statistic stays within 5 standard deviations of its mean."""
    count = np.bincount(values, minlength=len(probabilities))
    assert len(count) == len(probabilities) and not count[np.equal(probabilities, 0)].any()
    possible = np.greater(probabilities, 0)
    expected = np.asarray(probabilities)[possible] * len(values)
    freedom = len(expected) - 1
    statistic = ((count[possible] - expected) ** 2 / expected).sum()
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


def test_trajectory_ends_by_hand():
    terminals = np.zeros(ROWS, np.float32)
    terminals[LAST] = 1
    start = np.array([0, 5, 8, 9, 12, 13, 43])  # 8, 12 and 43 are terminal themselves
    ends = trajectory_ends(terminals, start)
    assert ends.dtype == np.int32 and ends.tolist() == [8, 8, 8, 12, 12, 43, 43]


@pytest.mark.parametrize("sampling", ["uniform", "geometric"])
def test_every_sample_is_what_a_slow_loop_reads(sampling):
    batch, row = draw(3000, sampling=sampling)
    for i, r in enumerate(row):
        end = LAST[r <= LAST][0]
        np.testing.assert_allclose(batch.action[i], np.arange(r, r + CHUNK) / 100)
        assert batch.next_obs[i].tolist() == [r + CHUNK, -r - CHUNK]
        long = [min(x, end) for x in range(r, r + LONG + 1)]
        np.testing.assert_allclose(batch.long_action[i], np.array(long[:-1]) / 100)
        assert batch.long_next_obs[i].tolist() == [long[-1], -long[-1]]
        assert batch.whole[i] == (r + LONG <= end)
        goal = batch.goal[i, 0] / 10
        if batch.distance[i] == FAR:
            assert 0 <= goal < ROWS
        else:
            assert goal == r + batch.distance[i] <= end
    assert 0 < batch.whole.mean() < 1 and set(row) == set(np.asarray(rows().chunks.start))
    assert batch.distance.dtype == np.int32 and (batch.distance >= 0).all()


def test_shares_of_the_three_kinds():
    batch, _ = draw(100_000)
    kind = np.where(batch.distance == FAR, 2, np.minimum(batch.distance, 1))
    check_frequencies(kind, [0.2, 0.5, 0.3])


@pytest.mark.parametrize("current, trajectory, kind", [(1, 0, 0), (0, 1, 1), (0, 0, 2)])
def test_a_share_of_1_leaves_no_other_kind(current, trajectory, kind):
    batch, _ = draw(5000, p_current=float(current), p_trajectory=float(trajectory))
    assert set(np.where(batch.distance == FAR, 2, np.minimum(batch.distance, 1))) == {kind}


def test_random_goals_are_uniform_over_all_rows():
    batch, row = draw(100_000, p_current=0.0, p_trajectory=0.0)
    goal = (batch.goal[:, 0] / 10).astype(int)
    check_frequencies(goal, [1 / ROWS] * ROWS)
    check_frequencies(goal[row == row[0]], [1 / ROWS] * ROWS)  # wherever the chunk is


@pytest.mark.parametrize("row", [0, 5, 9, 13, 40])
@pytest.mark.parametrize("sampling", ["uniform", "geometric"])
def test_goals_ahead_have_the_stated_frequencies(sampling, row):
    settings = {"p_current": 0.0, "p_trajectory": 1.0, "discount": 0.8}
    batch, rows = draw(300_000, sampling=sampling, **settings)
    left = LAST[row <= LAST][0] - row
    steps = np.arange(1, left + 1)
    probabilities = np.full(left, 1 / left)
    if sampling == "geometric":
        probabilities = 0.2 * 0.8 ** (steps - 1)
        probabilities[-1] = 0.8 ** (left - 1)  # all that would lie beyond the end
    check_frequencies(batch.distance[rows == row], [0, *probabilities])


def test_without_discount_geometric_goals_are_the_last_state():
    settings = {"p_current": 0.0, "p_trajectory": 1.0, "discount": 1.0}
    batch, row = draw(1000, sampling="geometric", **settings)
    assert (row + batch.distance == [LAST[r <= LAST][0] for r in row]).all()


def test_goals_leave_the_chunks_as_they_are():
    goals = rows()
    both = eqx.filter_jit(lambda goals, key: (goals.sample(key, 64), goals.chunks.sample(key, 64)))
    for seed in range(5):
        batch, plain = both(goals, jax.random.key(seed))
        for name in ("obs", "action", "next_obs"):
            assert getattr(batch, name).tobytes() == getattr(plain, name).tobytes()


def test_the_goal_is_independent_of_the_chunk():
    batch, row = draw(50_000, p_current=0.5, p_trajectory=0.0)
    early = row < np.median(row)
    shares = [(batch.distance[part] == 0).mean() for part in (early, ~early)]
    assert shares == pytest.approx([0.5, 0.5], abs=0.02)


def test_chunks_keep_their_own_ends_where_last_observations_were_not_recorded():
    """Those that end there are moved behind all others."""
    row = np.arange(ROWS, dtype=np.float32)
    last, none = np.isin(row, LAST), np.zeros(ROWS, bool)
    recorded = Trajectories(row[:, None], row[:, None], last, none, row, unseen=last)
    source = Episodes(recorded)
    chunks = GoalDataset(source, GoalDraws(), chunk=CHUNK, discount=0.9).validation()
    start = chunks.chunks.start
    assert chunks.chunks.counts.critic == len(start) - len(LENGTHS)
    assert chunks.end.tolist() == [LAST[r <= LAST][0] - 1 for r in start]


def test_a_data_set_passes_its_settings_on(data):
    draws = DQC.Hyper(
        critic_chunk=7, goal_current=0.15, goal_trajectory=0.6, goal_sampling="geometric"
    )
    source = find_task("cube-single-play-oraclerep-v0").open(data)
    dataset = GoalDataset(source, draws, chunk=3, discount=0.6)
    chunks = jax.device_put(dataset.validation())
    start = np.asarray(chunks.chunks.start)
    index = np.tile(np.arange(len(start)), 300)
    batch = chunks.take(jnp.asarray(index), jax.random.key(0))
    assert batch.action.shape[1] == 3 * 5 and batch.long_action.shape[1] == 7 * 5
    distance = np.asarray(batch.distance)
    shares = [(distance == 0).mean(), (distance == FAR).mean()]
    assert shares == pytest.approx([0.15, 0.25], abs=0.01)
    far_from_the_end = (chunks.end - start > 30)[index]
    ahead = distance[far_from_the_end & (distance > 0) & (distance < FAR)]
    assert ahead.mean() == pytest.approx(1 / 0.4, rel=0.02)  # of a geometric number
