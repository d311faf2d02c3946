import dataclasses
import functools
import shutil

import pytest

from qgf import demo
from qgf.act import rollout
from qgf.errors import UserError
from qgf.tasks._workers import Workers


@pytest.fixture
def tiny(monkeypatch):
    """Sizes at which the demo shows nothing but that its parts fit."""
    config = dataclasses.replace(
        demo.CONFIG, steps=20, dispatch_steps=10, checkpoint_every=10, batch_size=8, width=16
    )
    for name, value in {
        "collect": functools.partial(demo.collect, steps=101),
        "EPISODES": 2,
        "VAL_EPISODES": 1,
        "CONFIG": config,
        "WEIGHTS": (0.0, 0.1),
        "SAMPLES": 2,
        "TUNE_EPISODES": 1,
        "TEST_EPISODES": 2,
        "CALLS": 2,
        "report": functools.partial(demo.report, video=False),
    }.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(rollout, "Workers", functools.partial(Workers, max_episode_steps=12))


def written(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_demo_does_all_and_then_only_what_is_missing(tiny, tmp_path, capsys):
    out = tmp_path / "demo"
    demo.demo(out, workers=1)
    first = capsys.readouterr().out
    for word in ("1/4", "4/4", "BC ", "best of 2", "QGF, w = ", str(out / "run/report.html")):
        assert word in first
    assert (out / "run" / "report.html").exists()

    before = written(out)
    demo.demo(out, workers=1)
    after = written(out)
    assert {path for path in after if after[path] != before.get(path)} <= {
        out / "data" / "manifest.json"
    }

    shutil.rmtree(out / "run" / "checkpoints" / "00000020")
    demo.demo(out, workers=1)
    assert (out / "run" / "checkpoints" / "00000020").exists()
    assert (
        written(out)[out / "run" / "checkpoints" / "00000010" / "state.json"]
        == (before[out / "run" / "checkpoints" / "00000010" / "state.json"])
    )


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds something else \(thesis.tex\)"):
        demo.demo(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        demo.demo(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
