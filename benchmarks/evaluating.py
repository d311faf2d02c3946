"""Wall time of a sweep over guidance weights, against the peer's evaluation."""

import time

import equinox as eqx
import jax

from benchmarks.latency import SPEC, learners
from qgf.act import Arm, make_jobs, roll_out
from qgf.tasks import find_task

ENV = "cube-single-play-singletask-task2-v0"
WEIGHTS = (0.0, 0.003, 0.01, 0.03, 0.1)
EPISODES = 20
WORKERS = 2
SIZE = 256, 3
SLOTS = 32


def measure(peer: bool) -> dict:
    """Return seconds and episodes a minute of 5 weights x 20 episodes.

    Both sides act with fresh networks of 3 x 256, which never solve the task, so that every
    episode has its full 200 steps. Our time includes the start of the processes.
    """
    mine = jax.tree.map(lambda x: x[None] if eqx.is_array(x) else x, learners(*SIZE))
    jobs = make_jobs([Arm("qgf", w) for w in WEIGHTS], 1, {"test": EPISODES})
    start = time.perf_counter()
    outcomes = roll_out(find_task(ENV), SPEC, mine, jobs, WORKERS, SLOTS, 0)
    seconds = time.perf_counter() - start
    result = {
        "seconds": seconds,
        "episodes_per_minute": 60 * len(jobs) / seconds,
        "steps_per_second": sum(outcome.length for outcome in outcomes.values()) / seconds,
    }
    if peer:
        from benchmarks import peer as peers

        agent = peers.make_agent(SPEC, *SIZE)
        taken, _ = peers.evaluate(agent, ENV, WEIGHTS, EPISODES, WORKERS)
        result |= {"peer_seconds": taken, "ratio": seconds / taken}
    return result
