"""What the documents say is what the results and the code say."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import qgf

ROOT = Path(__file__).parent.parent


def test_tables_come_from_the_results():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs/tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for page in tables.PAGES:
        text = (ROOT / page).read_text()
        assert "<!-- table" in text
        assert tables.filled(text) == text, page


def test_the_python_of_the_readme_runs(run, tmp_path, monkeypatch, capsys):
    own, trained, pytorch, arrays = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    names = {}
    exec(own, names)
    actions = np.asarray(names["actions"])
    plain = qgf.euler(names["v"], names["noise"])
    peak = abs(actions - 0.3).mean()
    assert actions.shape == (4, 2) and peak < abs(np.asarray(plain) - 0.3).mean()
    names["obs"] = np.zeros(qgf.load(run).spec.obs)
    exec(trained.replace('"runs/cube"', repr(str(run))), names)
    spec = names["policy"].spec
    assert names["chunk"].shape == (spec.chunk, spec.action)
    start = torch.zeros(2, spec.chunk, spec.action)
    theirs = {"obs": torch.zeros(2, spec.obs), "velocity": lambda a, t: -a, "noise": start}
    exec(pytorch.replace('"runs/cube"', repr(str(run))), theirs)
    assert theirs["actions"].shape == start.shape and theirs["actions"].abs().max() > 0
    monkeypatch.chdir(tmp_path)
    exec(arrays.replace("steps=2000, width=128", "steps=1000, width=32"), {})
    unguided, guided = re.findall(r": (-\d\.\d\d)", capsys.readouterr().out)
    assert float(guided) > float(unguided)


@pytest.mark.parametrize("page", ["your-policy", "your-data", "your-environment"])
def test_the_python_of_the_guides_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        exec(re.sub(r"steps=\d\d+00?,", "steps=100,", block), names)
    shown = capsys.readouterr().out
    if page == "your-policy":
        nearer = np.abs(np.asarray(names["guided"]) - 0.3).mean()
        assert nearer < np.abs(np.asarray(names["plain"]) - 0.3).mean()
    if page == "your-data":
        assert names["trajectories"].observation.shape == (63, 4)
    if page == "your-environment":
        assert names["result"].measure.name == "return" and "over BC" in shown


def test_the_python_of_the_pytorch_page_runs(run):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/pytorch.md").read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        exec(block.replace('"runs/cube"', repr(str(run))), names)
    away = {name: (names[name] - 0.3).abs().mean() for name in ("plain", "guided", "wide")}
    assert away["guided"] < away["plain"] and away["wide"] < away["plain"]
    assert names["values"].shape == (4,)
    assert names["led"].abs().mean() < names["plain"].abs().mean()  # the critic leads to 0


def test_the_python_of_the_page_on_real_time_chunking_runs(run):
    page = (ROOT / "docs/realtime.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(block.replace('"runs/cube"', repr(str(run))), names)
    assert names["left"].shape == (2, 5) and names["following"].shape == (5, 5)


def test_the_map_names_every_module():
    page = (ROOT / "docs/architecture.md").read_text()
    rooms = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for path in (ROOT / "src/qgf").rglob("*.py"):
        room, *file = path.relative_to(ROOT / "src/qgf").parts
        listed, name = (rooms[f"{room}/"], "/".join(file)) if file else (page, room)
        assert name.endswith("__init__.py") or f"`{name}`" in listed, path


def test_commands_of_the_pages_parse(run, tmp_path):
    """In a process where annotations are not checked; tyro bends them."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages).replace("\\\n", " ")
    lines = re.findall(r"^    (qgf .*?)(?:  #.*)?$", text, re.MULTILINE)
    lines = [line for line in lines if "awr" not in line]  # a method of the page's own
    assert len(lines) > 8
    code = (
        "import json, sys; from qgf._parsing import parse; [parse(a) for a in json.load(sys.stdin)]"
    )
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/task2").symlink_to(run)  # a base whose settings are read while parsing
    argv = json.dumps([shlex.split(line)[1:] for line in lines])
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=argv,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
