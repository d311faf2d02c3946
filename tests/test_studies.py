"""What all studies share: their frame, and the runs they look at."""

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import release_memory, train_and_release
from matplotlib.figure import Figure

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


@pytest.mark.slow
def test_studies_of_goals(tmp_path, monkeypatch):
    """One critic for all goals, at the goals of the validation data, and all five evaluated."""
    brief = functools.partial(Workers, max_episode_steps=10)
    monkeypatch.setattr("qgf.comparison.protocol.Workers", brief)
    monkeypatch.setattr("qgf.comparison._trainings.train", train_and_release)
    env, found = "cube-single-play-oraclerep-v0", {}
    for name in ANYWHERE:
        release_memory()  # every study compiles programs of its own
        run_study(name, "smoke", tmp_path, env)
        found[name] = json.loads((tmp_path / f"{name}-{env}.json").read_text())
    (only,) = (tmp_path / "smoke/runs/cube-single-play").glob("*/critic")
    assert only.parent.name == "goals"
    assert (np.abs(list(found["sensitivity"]["cosines"].values())) <= 1).all()
    (task,) = found["weight"]["tasks"]
    assert task["rows"][0]["test"]["episodes"] == 2 * 5
    assert all(row["q_gain"] != 0 for row in task["rows"][1:])
    assert found["q-optimizer"]["rows"]["qgf"][0]["gain"] > 0
