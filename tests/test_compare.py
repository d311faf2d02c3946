"""Comparing methods: one protocol, shared runs, and nothing lost to a kill."""

import dataclasses
import functools
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TASK, TINY, release_memory, train_and_release
from test_gymnasium import PENDULUM, play
from test_own_data import TINY as OWN

import qgf.comparison._trainings
import qgf.comparison.protocol
from qgf.act import rollout
from qgf.cli import main
from qgf.comparison import Plan
from qgf.comparison._compare import _folders, compare
from qgf.comparison._costs import count
from qgf.config import PRESETS, Spec
from qgf.data import Fields, convert
from qgf.errors import UserError
from qgf.evaluation import evaluate
from qgf.files import read_value
from qgf.methods.table import find_method, settings
from qgf.run.checkpoint import list_checkpoints, load_learner, load_record, of_seed
from qgf.tasks import find_task
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
from qgf.executor import Processes

qgf.comparison.protocol.Workers = functools.partial(Workers, max_episode_steps=10)
compare({envs!r}, {methods!r}, [Path({data!r})], Path({out!r}), {config!r},
        seeds=(3,), episodes=2, tune_episodes=1, slots=4, workers=1, executor=Processes(2))
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
    monkeypatch.setattr(qgf.comparison._trainings, "train", train_and_release)


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
        patch.setattr(qgf.comparison._trainings, "train", train_and_release)
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
        ("qgf.comparison._trainings", "train"),
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
    while kills < 2:
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
        (
            {"envs": ("scene-play-singletask-task1-v0",)},
            "needs scene-play-v0; collect it or name its",
        ),
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
    argv = f"--envs {TASK} gymnasium:A --methods qgf bfn --data c d --seeds 3,5 --episodes 7"
    more = "--tune-episodes 6 --workers 3 --slots 4 --seed 9 --preset paper --steps 11"
    fields = "--obs x --action u --reward r --success won --jobs 3"
    monkeypatch.setattr("qgf.executor.for_training", lambda *asked: asked)
    main(["compare", "--out", str(tmp_path), *argv.split(), *more.split(), *fields.split()])
    config = dataclasses.replace(PRESETS["paper"], steps=11)
    options = {"seeds": [3, 5], "episodes": 7, "tune_episodes": 6, "workers": 3, "slots": 4}
    assert calls == [
        (
            ((TASK, "gymnasium:A"), ("qgf", "bfn"), (Path("c"), Path("d")), tmp_path, config),
            {
                **options,
                "seed": 9,
                "fields": Fields(("x",), "u", "r"),
                "success": "won",
                "executor": ("processes", 3, None),
            },
        )
    ]
    assert "the tables" in capsys.readouterr().out


SMALL = [
    word
    for name, value in dataclasses.asdict(OWN).items()
    if value != getattr(PRESETS["laptop"], name)
    for word in ("--" + name.replace("_", "-"), str(value))
]


@pytest.fixture(scope="module")
def swings(tmp_path_factory):
    """Random episodes of a pendulum, which nothing says to be solved."""
    folder = tmp_path_factory.mktemp("swings") / "data"
    convert(play(find_task(PENDULUM), 4, 20), Fields(), folder)
    return folder


def command(out, env, data, *more):
    sizes = "--methods qgf --seeds 3,5 --episodes 3 --tune-episodes 2 --slots 4 --workers 1"
    argv = ["--out", out, "--envs", env, "--data", data, *sizes.split(), *SMALL, *more]
    argv += ["--jobs", 0]
    main(["compare", *map(str, argv)])


def test_returns_are_compared_where_nobody_says_success(swings, tmp_path, short, capsys):
    command(tmp_path / "out", PENDULUM, swings)
    result = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert result["measure"] == "return"
    episodes = {}
    for name in ("bc", "qgf"):
        (file,) = (tmp_path / "out" / "episodes" / PENDULUM / name).glob("test *.json")
        episodes[name] = np.array(read_value(file), float)[..., 1]
        figures = result["tasks"][PENDULUM][name]
        low, high = figures["return_ci95"]
        assert (
            figures["return"] == pytest.approx(episodes[name].mean()) and "success" not in figures
        )
        assert low < figures["return"] < high
    assert np.ptp(episodes["bc"]) > 1  # starts differ, so nothing above is trivially equal
    gain = result["tasks"][PENDULUM]["qgf"]["difference"]
    assert gain == pytest.approx((episodes["qgf"] - episodes["bc"]).mean())
    # Tune episodes choose by their return; guidance of every weight was tried on them.
    searched = result["settings"][PENDULUM]["qgf"]
    best = max(searched, key=lambda row: row["tune"]["return"])
    assert len(searched) == 5 and result["tasks"][PENDULUM]["qgf"]["weight"] == best["weight"]
    text = capsys.readouterr().out
    assert f"{episodes['bc'].mean():.4g} (" in text and "Returns on test episodes" in text

    # A return may be what success is; other rules are other results.
    with pytest.raises(SystemExit):
        command(tmp_path / "out", PENDULUM, swings, "--success", "return:-1e9")
    assert "other settings (success)" in capsys.readouterr().err


def test_the_environment_gets_actions_in_its_own_units(swings, tmp_path, short):
    """The same networks and weight, evaluated by themselves, come to the same."""
    command(tmp_path / "out", PENDULUM, swings, "--success", "return:-1e9")
    result = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert result["measure"] == "success" and result["overall"]["bc"]["mean"] == 1
    run = tmp_path / "out" / "runs" / PENDULUM / "task" / "critic"
    assert load_record(run)["normalization"]["action"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "Workers", functools.partial(Workers, max_episode_steps=10))
        found = evaluate(run, (0.1,), episodes=3, tune_episodes=2, slots=4, workers=1)
    ours = result["tasks"][PENDULUM]["bc"]["return"]
    assert ours == pytest.approx(found.methods["bc"].test.return_)


@pytest.mark.parametrize(
    "env, more, message",
    [
        ("gymnasium:Pendulm-v1", (), "makes no environment"),
        ("gymnasium:MountainCarContinuous-v0", (), r"shape \(2,\) .* holds 3 and 1 numbers"),
        ("none", (), "names no task; use"),
        (PENDULUM, ("--obs", "speed"), "speed"),
        (PENDULUM, ("--data", "a", "b"), "a does not exist"),
        (PENDULUM, ("--success", "return:much"), "must be a number"),
        (TASK, ("--success", "won"), "says itself what success is"),
    ],
)
def test_unfit_tasks_of_others(env, more, message, swings, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command(tmp_path / "out", env, swings, *more)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and re.search(message, line)
    assert not (tmp_path / "out").exists()


def test_data_go_to_their_environments(data, swings, tmp_path):
    """OGBench's by name, the others in order; what nobody needs is said."""

    def folders(*paths):
        plan = Plan(tmp_path, {}, TINY, (0,), {})
        return _folders(plan, (PENDULUM, TASK), paths)

    expected = {PENDULUM: swings, "cube-single-play-v0": data}
    assert folders(swings, data) == folders(data, swings) == expected
    with pytest.raises(UserError, match=f"{PENDULUM} needs data of its own"):
        folders(data)
    with pytest.raises(UserError, match=r"no environment of --envs needs the data in .*more"):
        folders(data, swings, tmp_path / "more")


def test_a_critic_has_nothing_to_learn_from(tmp_path):
    rows = np.zeros((8, 3), np.float32)
    ends = np.arange(8) % 4 == 3
    silent = {"observations": rows, "actions": rows[:, :1], "terminals": 0 * ends, "timeouts": ends}
    np.savez(tmp_path / "silent.npz", **silent)
    with pytest.raises(UserError, match=r"has no rewards.*--reward"):
        run(tmp_path / "silent.npz", tmp_path / "out", envs=(PENDULUM,))
