"""Every part of the benchmarks, at its smallest, beside a stand-in for the peer's code."""

import dataclasses
import functools
import importlib.util
import json
import sys
import time
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import ogbench
import pytest
from conftest import release_memory

import qgf.act.rollout
from benchmarks import (
    __main__ as program,
    aggregation,
    collecting,
    costs,
    dqc,
    evaluating,
    gpu,
    latency,
    streaming,
    training,
)
from qgf.comparison._costs import count
from qgf.config import Config, Spec
from qgf.errors import UserError
from qgf.files import read_json, write_json
from qgf.learners import DEFAULT_KINDS, LEARNERS
from qgf.methods.table import find_method
from qgf.run import Fixed, create_state, train_steps
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
        streaming: {
            **{"EPISODES": 2, "STEPS": 40, "COPIES": 2, "SHARDS": 3, "GIGABYTES": 1e-9},
            **{"_apart": lambda plan: streaming._train(plan)},  # not three processes more
            **{"EVERY": 10, "CONFIG": dataclasses.replace(TINY, dispatch_steps=5), "ROUNDS": 1},
        },
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


class Still(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (SPEC.obs,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (SPEC.action,), np.float32)

    def reset(self, **options):
        return np.zeros(SPEC.obs, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action))
        return np.zeros(SPEC.obs, np.float32), -1.0, False, False, {}


@pytest.fixture
def peer(monkeypatch):
    """A checkout of what benchmarks/peer.py uses of the authors' code, with our networks."""
    monkeypatch.setenv("QGF_PEER", str(Path(__file__).parent / "fixtures/peer"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    made = {(evaluating.ENV, True): Still}
    monkeypatch.setattr(
        ogbench, "make_env_and_datasets", lambda env, env_only: made[env, env_only]()
    )
    monkeypatch.setattr(gymnasium.vector, "AsyncVectorEnv", gymnasium.vector.SyncVectorEnv)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("agents", "envs", "utils")]:
        del sys.modules[name]


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
        "aggregation": [*aggregation.ENSEMBLES],
        "streaming": [f"0.00048M transitions, {way}" for way in streaming.WAYS],
        "reading": ["everything", "unzip", "rewards", "SHA-256"],
    }
    assert {part: [*rows] for part, rows in figures.items()} == names
    row = {part: rows[names[part][0]] for part, rows in figures.items()}
    assert row["latency"].pop("difference") < 1e-6
    never, *moving = figures["streaming"].values()
    assert never.pop("waiting") == never.pop("longest_wait_s") == 0
    assert all(row["waiting"] < 1 for row in moving)
    values = [x for rows in figures.values() for one in rows.values() for x in one.values()]
    assert np.isfinite(values).all() and min(values) > 0
    assert row["latency"]["ms"] < row["latency"]["peer_ms"]  # the stand-in is not compiled
    one = row["training"]
    assert one["ratio"] == pytest.approx(one["steps_per_second"] / one["peer_steps_per_second"])

    (episodes,) = ran
    arms = {(job.arm.method, job.arm.weight, job.episode) for job in episodes}
    assert arms == {("qgf", w, i) for w in evaluating.WEIGHTS for i in range(2)}
    one = row["evaluating"]
    assert one["steps_per_second"] * one["seconds"] == pytest.approx(len(episodes) * 10)
    assert one["episodes_per_minute"] * one["seconds"] == pytest.approx(len(episodes) * 60)
    assert one["ratio"] == pytest.approx(one["seconds"] / one["peer_seconds"])
    one = row["collecting"]
    assert one["ratio"] == pytest.approx(one["steps_per_second"] / one["ogbench_steps_per_second"])

    # The tables of docs/performance.md have these very columns.
    spec = importlib.util.spec_from_file_location("tables", program.ROOT / "docs/tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = (program.ROOT / "docs/performance.md").read_text()
    (tmp_path / "results").mkdir()
    (tmp_path / "results/streaming.json").write_bytes(path.read_bytes())
    path.rename(tmp_path / "results/benchmarks.json")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    for part in tables.PARTS:
        head = tables.speed(part).splitlines()[0]
        assert f"<!-- table {part} -->\n\n{head}\n" in page


@pytest.mark.slow
def test_the_small_preset_of_the_gpu_script(peer, tmp_path, monkeypatch):
    release_memory(environments=0)
    path = tmp_path / "gpu.json"
    path.write_text('{"another": 1}')
    gpu.main("small", json=path)
    kept = read_json(path)
    assert kept.pop("another") == 1
    assert {part["conditions"]["preset"] for part in kept.values()} == {"small"}
    rows = {part: kept[part]["figures"] for part in kept}
    values = [x for part in rows.values() for one in part.values() for x in one.values()]
    assert np.isfinite(values).all()
    one, two = (rows["training"][f"2x16 batch 8, {n} seeds"] for n in (1, 2))
    assert two["seed_steps_per_second"] == 2 * two["steps_per_second"]
    assert one["peer_steps_per_second"] == 2 * two["peer_steps_per_second"]
    for row in (one, two):
        assert row["ratio"] == pytest.approx(row["steps_per_second"] / row["peer_steps_per_second"])
    assert [*rows["acting"]] == ["2x16 batch 1", "2x16 batch 5"]
    for batch, one in zip((1, 5), rows["acting"].values(), strict=True):
        assert one["actions_per_second"] * one["ms"] == pytest.approx(1000 * batch)

    # The curves are what training of one seed gives, step after step.
    config = gpu.PLANS["small"].sizes["2x16"]
    state = create_state(DEFAULT_KINDS, training.SPEC, config, seeds := jnp.arange(1))
    fixed = Fixed(training.chunks(), seeds, config)
    for step in range(0, 10, 5):
        state, metrics = train_steps(fixed, state, jnp.asarray(step), 5)
        for loss in gpu.LOSSES:
            curve = rows["precision"][f"2x16 {loss} float32"]
            assert curve[str(step + 5)] == pytest.approx(float(metrics[loss][0]), rel=1e-5)


BENCHMARKS = """
import json, sys
from pathlib import Path
import qgf
options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
log = Path(__file__).parents[2] / "log.json"
turns = json.loads(log.read_text()) if log.exists() else []
log.write_text(json.dumps([*turns, [qgf.NAME, options["--parts"], options["--seconds"]]]))
figures = {qgf.NAME: {"ms": 1.0}, "a size": {"ms": qgf.MS[sum(t[0] == qgf.NAME for t in turns)]}}
Path(options["--json"]).write_text(json.dumps({options["--parts"]: {"figures": figures}}))
"""


def test_another_checkout_is_measured_in_turns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QGF_PEER", "is not measured")
    for name, ms in (("new", [2.0, 9.0, 4.0]), ("old", [4.0, 3.0, 4.0])):
        (tmp_path / name / "src/qgf").mkdir(parents=True)
        (tmp_path / name / "benchmarks").mkdir()
        (tmp_path / name / "src/qgf/__init__.py").write_text(f"NAME = {name!r}\nMS = {ms}\n")
        (tmp_path / name / "benchmarks/__main__.py").write_text(BENCHMARKS)
    monkeypatch.setattr(program, "ROOT", tmp_path / "new")
    path = tmp_path / "figures.json"
    program.main(("latency",), 0.5, path, tmp_path / "old", 3)
    kept = read_json(path)["against"]
    row = {"here": 4.0, "there": 4.0, "ratio": 1.0, "lowest": 0.5, "highest": 3.0}
    assert kept["figures"] == {"latency a size ms": row}
    assert kept["conditions"]["rounds"] == 3 and "against" in kept["conditions"]
    turns = json.loads((tmp_path / "log.json").read_text())
    assert [turn[0] for turn in turns] == ["new", "old", "old", "new", "new", "old"]
    assert {(part, seconds) for _, part, seconds in turns} == {("latency", "0.5")}
    assert "latency a size ms" in capsys.readouterr().out

    with pytest.raises(UserError, match=r"fail:(.|\n)*IndexError"):  # no fourth round
        program.main(("latency",), 0.5, path, tmp_path / "old", 1)
    with pytest.raises(UserError, match="no checkout of this project at"):
        program.main(("latency",), 0.5, path, tmp_path / "other", 1)


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
