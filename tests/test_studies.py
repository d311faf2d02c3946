"""What all studies share: their frame, and the runs they look at."""

import json
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from qgf.errors import UserError
from qgf.studies import STUDIES, run_study


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
