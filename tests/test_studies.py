"""What all studies share: their frame, and the runs they look at."""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import release_memory, train_and_release
from matplotlib.figure import Figure

import studies
from qgf.cli import main
from qgf.errors import UserError
from qgf.tasks._workers import Workers
from studies import ANYWHERE, STUDIES, run_study


@pytest.fixture
def double(monkeypatch):
    def draw(data):
        figure = Figure((1 + data["value"], 1))
        figure.subplots().plot([0, data["value"]])
        return figure

    study = SimpleNamespace(
        measure=lambda preset, out, executor: {"value": {"smoke": 1, "laptop": 2}[preset]},
        draw=draw,
        say=lambda data: f"It is {2 * data['value']}.",
    )
    monkeypatch.setitem(STUDIES, "double", study)


def test_a_study_leaves_data_figures_and_words(double, tmp_path):
    assert run_study("double", "laptop", tmp_path / "out") == "It is 4."
    out = tmp_path / "out"
    assert json.loads((out / "double.json").read_text()) == {
        "study": "double",
        "preset": "laptop",
        "value": 2,
    }
    assert (out / "double.md").read_text() == "It is 4.\n"
    assert (out / "double.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (out / "double.svg").read_text()
    before = {path: path.read_bytes() for path in out.iterdir()}
    run_study("double", "laptop", out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "preset", "message"),
    [
        ("doubel", "smoke", r"no study 'doubel'\. Did you mean 'double'\? There are: all, "),
        ("double", "tiny", "no preset 'tiny'; there are: smoke, laptop, paper"),
    ],
)
def test_unknown_names(double, name, preset, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run_study.__wrapped__(name, preset, tmp_path / "out")  # annotations would refuse it
    assert not (tmp_path / "out").exists()


def test_a_study_of_its_own_environments(tmp_path):
    with pytest.raises(UserError, match="toy has environments of its own; --env is for sensi"):
        run_study("toy", "smoke", tmp_path / "out", "cube-single-play-oraclerep-v0")
    with pytest.raises(UserError, match="cube-single-play-v0 names no task; use …-singletask"):
        run_study("weight", "smoke", tmp_path / "out", "cube-single-play-v0")
    assert not (tmp_path / "out").exists()


def test_the_command_passes_everything_on(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(studies, "run_study", lambda *given: calls.append(given) or "Words.")
    monkeypatch.setattr("qgf.executor.for_training", lambda *asked: asked)
    argv = "study toy --preset smoke --env a --jobs 3 --executor ray --address b:1 --out"
    main([*argv.split(), str(tmp_path)])
    assert calls == [("toy", "smoke", tmp_path, "a", ("ray", 3, "b:1"))]
    assert capsys.readouterr().out == "toy: Words.\n"


class Here:
    """An executor in this process, which notes what it runs."""

    count = 1

    def __init__(self):
        self.names, self.ended = [], {}

    def fits(self, job, running):
        return not running

    def start(self, job):
        self.names.append(job.name)
        job.work()
        self.ended[job.name] = None

    def wait(self, seconds):
        ended, self.ended = self.ended, {}
        return ended

    def stop(self):
        pass


class Enough(Exception):
    """Raised where trainings would begin."""


RUNS = "runs/cube-single-play"
POLICY, CRITIC = f"{RUNS}/policy", f"{RUNS}/task2/critic"
TRAININGS = {
    "critics": {
        POLICY: [],
        CRITIC: [POLICY],
        f"{RUNS}/task2/qgf-monte-carlo": [CRITIC],
        "critics/expectile-0.7": [POLICY],
        "critics/expectile-0.97": [POLICY],
    },
    "scaling": {
        f"scaling/width-{width}/{name}": [f"scaling/width-{width}/{need}" for need in needs]
        for width in (64, 128, 256)
        for name, needs in {
            POLICY: [],
            CRITIC: [POLICY],
            f"{RUNS}/task2/qam": [CRITIC],
        }.items()
    },
}


@pytest.mark.parametrize("name", TRAININGS)
def test_all_that_a_study_trains_runs_side_by_side(name, tmp_path, monkeypatch):
    found = {}

    def begin(jobs, executor, unit):
        found.update({job.name: [*job.needs] for job in jobs})
        raise Enough

    monkeypatch.setattr("studies._runs.collect", lambda *_: None)
    monkeypatch.setattr("qgf.comparison._trainings._memory", lambda plan, env: 0)
    monkeypatch.setattr(f"studies.{name}.execute", begin)
    with pytest.raises(Enough):
        STUDIES[name].measure("laptop", tmp_path, Here())
    assert found == TRAININGS[name]


@pytest.mark.slow
def test_studies_of_goals(tmp_path, monkeypatch):
    """One critic for all goals, at the goals of the validation data, and all five evaluated.

    Nothing is trained outside the executor.
    """
    brief = functools.partial(Workers, max_episode_steps=10)
    monkeypatch.setattr("qgf.comparison.protocol.Workers", brief)
    trained = []

    def train(env, data, path, *more, **options):
        trained.append(str(path.relative_to(tmp_path / "smoke")))
        train_and_release(env, data, path, *more, **options)

    monkeypatch.setattr("qgf.comparison._trainings.train", train)
    env, found, executor = "cube-single-play-oraclerep-v0", {}, Here()
    for name in ANYWHERE:
        release_memory()  # every study compiles programs of its own
        run_study(name, "smoke", tmp_path, env, executor)
        found[name] = json.loads((tmp_path / f"{name}-{env}.json").read_text())
    (only,) = (tmp_path / "smoke/runs/cube-single-play").glob("*/critic")
    assert only.parent.name == "goals"
    assert trained == [POLICY, f"{RUNS}/goals/critic"]
    assert executor.names[-2:] == trained
    assert (np.abs(list(found["sensitivity"]["cosines"].values())) <= 1).all()
    (task,) = found["weight"]["tasks"]
    assert task["rows"][0]["test"]["episodes"] == 2 * 5
    assert all(row["q_gain"] != 0 for row in task["rows"][1:])
    assert found["q-optimizer"]["rows"]["qgf"][0]["gain"] > 0
