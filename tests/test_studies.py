"""What all studies share: their frame, and the runs they look at."""

import json
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from qgf.checkpoint import list_checkpoints
from qgf.errors import UserError
from qgf.protocol import run_folder
from qgf.studies import STUDIES, run_study
from qgf.studies._runs import SMOKE, study_plan


@pytest.fixture
def double(monkeypatch):
    study = SimpleNamespace(
        measure=lambda preset, out: {"value": {"smoke": 1, "laptop": 2}[preset]},
        draw=lambda data: Figure((data["value"], 1)),
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


@pytest.mark.slow
def test_sensitivity_on_a_run_of_its_own(tmp_path):
    paragraph = run_study("sensitivity", "smoke", tmp_path)
    data = json.loads((tmp_path / "sensitivity.json").read_text())
    assert data["states"] == 16 and f"{data['states']} states" in paragraph
    assert all(
        -1 <= value <= 1 for rows in data["cosines"].values() for row in rows for value in row
    )
    plan = study_plan("smoke", tmp_path, (data["env"],))
    assert max(list_checkpoints(run_folder(plan, "critic", data["env"]))) == SMOKE.steps
