"""Every part of the benchmarks, at its smallest, beside a stand-in for the peer's code."""

import functools
import json
import sys
import time
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import release_memory

import benchmarks
import qgf.act.rollout
from benchmarks import __main__ as program, collecting, costs, dqc, evaluating, latency, training
from qgf.comparison._costs import count
from qgf.config import Config, Spec
from qgf.core.guidance import guided_sample
from qgf.files import read_json, write_json
from qgf.learners import LEARNERS
from qgf.methods.table import find_method
from qgf.tasks._workers import Workers

TINY = Config(batch_size=4, width=8, depth=2)
SPEC = latency.SPEC


def releasing(measure):
    def measured(*arguments):
        release_memory(environments=0)
        return measure(*arguments)

    return measured


@pytest.fixture
def small(monkeypatch):
    sizes = {
        training: {"PRESETS": {"laptop": TINY}, "ROWS": 200, "ROUNDS": 1},
        latency: {"SIZES": {"2x8": (8, 2)}, "BATCHES": (3,)},
        collecting: {"DATASETS": ("cube-single-play-v0",), "STEPS": 30, "ROUNDS": 1},
        evaluating: {"EPISODES": 2, "SLOTS": 3, "WORKERS": 1, "SIZE": (8, 2)},
        dqc: {"ROWS": 3000, "STEPS": 1, "Config": lambda: TINY},
    }
    for module, changes in sizes.items():
        for name, value in changes.items():
            monkeypatch.setattr(module, name, value)
        # Programs and environments of one part would stay while the next is measured.
        monkeypatch.setattr(module, "measure", releasing(module.measure))
    monkeypatch.setattr(
        qgf.act.rollout, "Workers", functools.partial(Workers, max_episode_steps=10)
    )


def layers(mlp):
    """A network's weights, laid out as the peer's."""
    rows = [
        {"kernel": np.array(kernel), "bias": np.array(bias)}
        for kernel, bias in zip(mlp.kernels, mlp.biases, strict=True)
    ]
    for row, scale, shift in zip(rows, mlp.scales, mlp.shifts, strict=False):
        row |= {"scale": np.array(scale), "shift": np.array(shift)}
    return rows


@pytest.fixture
def peer(monkeypatch):
    """Our own networks of another start in the peer's place."""

    def make_agent(spec, width, depth, batch_size=256, discount=0.99):
        assert (spec, width, depth, discount) == (SPEC, 8, 2, 0.99) and batch_size in (4, 256)
        return jax.tree.map(
            lambda x: x + 0.1 if eqx.is_array(x) else x, latency.learners(width, depth)
        )

    def parameters(agent):
        critics = [layers(mlp) for mlp in agent["critic"].target_q.members]
        return {
            "policy": layers(agent["policy"].policy.mlp),
            "target_critic": jax.tree.map(lambda *x: np.stack(x), *critics),
        }

    def sample(agent, obs, key, weight):
        noise = jax.random.normal(key, (len(obs), SPEC.chunk_action))
        velocity, critic = (agent[role].bind(jnp.asarray(obs)) for role in ("policy", "critic"))
        return np.asarray(guided_sample(velocity, critic, noise, weight))

    functions = {
        "use": lambda: None,
        "make_agent": make_agent,
        "parameters": parameters,
        "sample": sample,
        "training_rate": lambda agent, arrays, seconds: 4.0,
        "evaluate": lambda agent, env, weights, episodes, workers: (8.0, {}),
    }
    stand_in = SimpleNamespace(**functions)
    monkeypatch.setattr(benchmarks, "peer", stand_in, raising=False)
    monkeypatch.setitem(sys.modules, "benchmarks.peer", stand_in)
    monkeypatch.setenv("QGF_PEER", "stand-in")


@pytest.mark.slow
def test_every_part_is_measured_and_kept(small, peer, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        evaluating, "roll_out", lambda *a: ran.append(qgf.act.rollout.roll_out(*a)) or ran[0]
    )
    path = tmp_path / "benchmarks.json"
    path.write_text('{"another": 1}')
    program.main(seconds=0.01, json=path)
    kept = json.loads(path.read_text())
    assert kept.pop("another") == 1
    figures = {part: result["figures"] for part, result in kept.items()}
    names = {
        "training": ["2x8 batch 4"],
        "latency": ["2x8 batch 3"],
        "collecting": ["cube-single-play-v0"],
        "evaluating": ["5 weights x 20 episodes"],
        "dqc": [f"{kind} 2x8 batch 4" for kind in ("iql", "goal-iql", "dqc")],
    }
    assert {part: [*rows] for part, rows in figures.items()} == names
    row = {part: rows[names[part][0]] for part, rows in figures.items()}
    assert row["latency"].pop("difference") < 1e-6
    values = [x for rows in figures.values() for one in rows.values() for x in one.values()]
    assert np.isfinite(values).all() and min(values) > 0
    assert row["training"]["steps_per_second"] == pytest.approx(4 * row["training"]["ratio"])
    assert row["latency"]["ms"] < row["latency"]["peer_ms"]  # the stand-in is not compiled

    (episodes,) = ran
    arms = {(job.arm.method, job.arm.weight, job.episode) for job in episodes}
    assert arms == {("qgf", w, i) for w in evaluating.WEIGHTS for i in range(2)}
    one = row["evaluating"]
    assert one["steps_per_second"] * one["seconds"] == pytest.approx(len(episodes) * 10)
    assert one["episodes_per_minute"] * one["seconds"] == pytest.approx(len(episodes) * 60)
    assert one["ratio"] == pytest.approx(one["seconds"] / 8)
    one = row["collecting"]
    assert one["ratio"] == pytest.approx(one["steps_per_second"] / one["ogbench_steps_per_second"])


def test_the_median_call_is_timed_in_milliseconds():
    slept = iter([0.0, *[0.002, 0.004, 0.02] * 100])
    (taken,) = latency.median_times([lambda: time.sleep(next(slept))], 0.1)
    assert 4 <= taken < 12


@pytest.mark.parametrize("timed", [False, True])
def test_costs_of_a_board_are_those_of_its_own_sizes(timed, tmp_path, monkeypatch):
    release_memory(environments=0)
    monkeypatch.setattr("benchmarks.costs.milliseconds", lambda act, spec, weight, n: float(n))
    old = {"ms": {"1": 3.5}, "flops": 1, "train_seconds": 2.5}
    flat = {name: value for name, value in vars(TINY).items() if name != "hyper"}
    facts = {"config": flat | {"ensemble": 2, "a setting of long ago": 1}}
    sizes = {"cube-single-play-v0": Spec(28, 5, 5), "scene-play-v0": Spec(40, 5, 5)}
    board = {"facts": facts, "costs": {dataset: {"qgf": {**old}} for dataset in sizes}}
    write_json(tmp_path / "board.json", {"commit": "x", "result": board})
    costs.main(tmp_path / "board.json", timed=timed)
    found = read_json(tmp_path / "board.json")["result"]
    for dataset, spec in sizes.items():
        held = {
            role: LEARNERS[kind].create(spec, TINY, jax.random.key(1))
            for role, kind in (("policy", "bc"), ("critic", "iql"))
        }
        wanted = old | {"flops": sum(count(find_method("qgf"), held, spec, 0.1, 1))}
        wanted |= {"ms": {"1": 1.0, "50": 50.0}} if timed else {}
        assert found["costs"][dataset]["qgf"] == wanted
    assert "benchmarks.costs" in found["costs_measured"]["command"]
