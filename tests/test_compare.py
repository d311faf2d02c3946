"""Comparing methods: one protocol, shared runs, and nothing lost to a kill."""

import dataclasses
import functools
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TASK, TINY, release_memory, train_and_release

import qgf.comparison.protocol
from qgf.cli import main
from qgf.comparison._compare import compare
from qgf.comparison._costs import count
from qgf.config import PRESETS, Spec
from qgf.errors import UserError
from qgf.files import read_value
from qgf.methods.table import find_method, settings
from qgf.run.checkpoint import list_checkpoints, load_learner, load_record, of_seed
from qgf.tasks._workers import Workers

OTHER = TASK.replace("task1", "task2")
GOALS = "cube-single-play-oraclerep-v0"
METHODS = ("qgf", "bfn-4")
SCRIPT = """
import functools, sys
from pathlib import Path
import qgf.comparison.protocol
from qgf.tasks._workers import Workers
from qgf.comparison._compare import compare
from qgf.config import Config

qgf.comparison.protocol.Workers = functools.partial(Workers, max_episode_steps=10)
compare({envs!r}, {methods!r}, [Path({data!r})], Path({out!r}), {config!r},
        seeds=(3,), episodes=2, tune_episodes=1, slots=4, workers=1)
"""


@pytest.fixture(scope="module", autouse=True)
def untimed():
    """Actions are not timed: their milliseconds are their number of observations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "qgf.comparison._compare.milliseconds", lambda act, spec, weight, batch: float(batch)
        )
        yield


@pytest.fixture
def short(monkeypatch):
    brief = functools.partial(Workers, max_episode_steps=10)
    monkeypatch.setattr(qgf.comparison.protocol, "Workers", brief)
    monkeypatch.setattr(qgf.comparison.protocol, "train", train_and_release)


def tables(out):
    """All that a comparison found, but for how long it took."""
    result = json.loads((out / "leaderboard.json").read_text())
    del result["costs"]
    return result


def run(data, out, envs=(TASK, OTHER), methods=METHODS, **change):
    options = {"seeds": (3,), "episodes": 2, "tune_episodes": 1, "slots": 4, "workers": 1} | change
    return compare(envs, methods, [data], out, options.pop("config", TINY), **options)


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    with pytest.MonkeyPatch.context() as patch:
        brief = functools.partial(Workers, max_episode_steps=10)
        patch.setattr(qgf.comparison.protocol, "Workers", brief)
        patch.setattr(qgf.comparison.protocol, "train", train_and_release)
        run(data, out)
    return out


def test_runs_are_shared(compared):
    runs = compared / "runs" / "cube-single-play"
    assert sorted(path.name for path in runs.iterdir()) == ["policy", "task1", "task2"]
    for task in (1, 2):
        (only,) = (runs / f"task{task}").iterdir()
        record = load_record(only)
        assert record["learners"] == {"critic": "iql"}
        assert record["borrowed"]["policy"]["run"] == str((runs / "policy").resolve())
        assert max(list_checkpoints(only)) == TINY.steps


def test_second_time_nothing_runs_again(compared, data, monkeypatch):
    before = (compared / "leaderboard.json").read_bytes()
    for module, name in (
        ("qgf.comparison.protocol", "train"),
        ("qgf.comparison.protocol", "roll_out"),
    ):
        monkeypatch.setattr(f"{module}.{name}", None)
    run(data, compared)
    assert (compared / "leaderboard.json").read_bytes() == before


def test_another_method_joins_and_the_rest_stays(compared, data, tmp_path, short):
    files = {p: p.read_bytes() for p in (compared / "episodes").rglob("*.json")}
    run(data, compared, methods=(*METHODS, "cfgrl"))
    assert all(path.read_bytes() == content for path, content in files.items())
    assert (compared / "runs/cube-single-play/task1/cfgrl/config.json").exists()
    assert "cfgrl" in (compared / "leaderboard.md").read_text()


def test_setting_is_chosen_on_tune_episodes_of_all_tasks(compared):
    rows = {}
    for env in (TASK, OTHER):
        for path in (compared / "episodes" / env / "qgf").glob("tune *.json"):
            rows.setdefault(path.stem, []).append(np.array(read_value(path)))
    assert len(rows) == 5 and all(len(parts) == 2 for parts in rows.values())
    # No tiny policy succeeds, so that the higher return decides.
    success = {name: np.mean([p[..., 0] for p in parts]) for name, parts in rows.items()}
    returns = {name: np.mean([p[..., 1] for p in parts]) for name, parts in rows.items()}
    weight = {name: float(name.split()[1]) for name in rows}
    best = max(rows, key=lambda name: (success[name], returns[name], -weight[name]))
    for env in (TASK, OTHER):
        tests = (compared / "episodes" / env / "qgf").glob("test *.json")
        assert [path.stem.split()[1:] for path in tests] == [best.split()[1:]]


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(compared, data, tmp_path):
    out = tmp_path / "out"
    script = SCRIPT.format(
        envs=(TASK, OTHER), methods=METHODS, data=str(data), out=str(out), config=TINY
    )
    random = np.random.default_rng(0)
    kills = 0
    while kills < 3:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=float(random.uniform(5, 9)))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        break
    assert kills > 0
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    run(data, compared)  # another test may have added a method; all is there already
    assert tables(out) == tables(compared)
    for name in ("bc", *METHODS):
        for env in (TASK, OTHER):
            whole, again = (
                {p.name: p.read_bytes() for p in (root / "episodes" / env / name).iterdir()}
                for root in (compared, out)
            )
            assert again == whole and again


@pytest.mark.parametrize(
    "change, message",
    [
        ({"envs": ()}, "name at least one environment"),
        ({"envs": ("cube-single-play-v0",)}, "names no task; use"),
        ({"envs": ("scene-play-singletask-task1-v0",)}, "needs data of scene-play-v0; name its"),
        ({"methods": ("qgg",)}, "no method 'qgg'. Did you mean 'qgf'"),
        ({"seed": 2**70}, r"must lie in \[0, 2\^31\), got 1180"),
        ({"seeds": (0, 2**31)}, r"must lie in \[0, 2\^31\), got 2147483648"),
        ({"episodes": 0}, "must lie between 1 and"),
    ],
)
def test_unfit_arguments(change, message, data, tmp_path):
    with pytest.raises(UserError, match=message):
        run(data, tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_results_of_other_settings_are_not_mixed(compared, data):
    with pytest.raises(UserError, match=r"holds a comparison with other settings \(seeds\)"):
        run(data, compared, seeds=(5,))


def test_goals_are_compared_like_tasks(compared, data, short):
    release_memory()  # the programs of goals are other ones
    policy = compared / "runs/cube-single-play/policy/config.json"
    before = policy.stat().st_mtime_ns
    result = run(data, compared, envs=(GOALS,), methods=("qfql",))
    critic = load_record(compared / "runs/cube-single-play/goals/critic")
    assert critic["learners"] == {"critic": "dqc"} and policy.stat().st_mtime_ns == before
    (episodes,) = (compared / "episodes" / GOALS / "qfql").glob("test *.json")
    assert np.array(read_value(episodes)).shape == (1, 2 * 5, 4)
    assert [*result["tasks"]] == [GOALS] and set(result["methods"]) == {"bc", "qfql"}

    # What networks of another size cost is measured anew.
    measured = {path.relative_to(compared / "costs") for path in compared.glob("costs/*/*.json")}
    assert measured >= {Path(GOALS) / "bc.json", Path(GOALS) / "qfql.json"}
    assert Path("cube-single-play-v0/bc.json") in measured and [*result["costs"]] == [GOALS]
    folder = compared / "runs/cube-single-play/goals/critic"
    held = {role: of_seed(load_learner(folder, role), 0) for role in ("policy", "critic")}
    weight, samples = settings("qfql")[-1]
    expected = count(find_method("qfql"), held, Spec(**critic["spec"]), weight, samples)
    cost = result["costs"][GOALS]["qfql"]
    assert cost["flops"] == sum(expected) and cost["ms"] == {"1": 1.0, "50": 50.0}


def test_the_command_passes_everything_on(tmp_path, monkeypatch, capsys):
    calls = []
    record = lambda *args, **options: calls.append((args, options))  # noqa: E731
    monkeypatch.setattr("qgf.comparison._compare.compare", record)
    (tmp_path / "leaderboard.md").write_text("the tables")
    argv = "--envs a b --methods qgf bfn --data c d --seeds 3,5 --episodes 7 --tune-episodes 6"
    more = "--workers 3 --slots 4 --seed 9 --preset paper --steps 11"
    main(["compare", "--out", str(tmp_path), *argv.split(), *more.split()])
    config = dataclasses.replace(PRESETS["paper"], steps=11)
    options = {"seeds": [3, 5], "episodes": 7, "tune_episodes": 6, "workers": 3, "slots": 4}
    assert calls == [
        (
            (("a", "b"), ("qgf", "bfn"), (Path("c"), Path("d")), tmp_path, config),
            {**options, "seed": 9},
        )
    ]
    assert "the tables" in capsys.readouterr().out
