"""What the documents say is what the results and the code say."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import qgf

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/performance.md"])
def test_tables_come_from_the_results(page):
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs/tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = (ROOT / page).read_text()
    assert "<!-- table" in text
    assert tables.filled(text) == text


def test_the_python_of_the_readme_runs(run):
    own, trained = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(own, names)
    actions = np.asarray(names["actions"])
    plain = qgf.euler(names["velocity"], names["obs"], names["noise"])
    peak = abs(actions - 0.3).mean()
    assert actions.shape == (4, 2) and peak < abs(np.asarray(plain) - 0.3).mean()
    names["obs"] = np.zeros(qgf.load(run).spec.obs)
    exec(trained.replace('"runs/cube"', repr(str(run))), names)
    spec = names["policy"].spec
    assert names["chunk"].shape == (spec.chunk, spec.action)


def test_the_map_names_every_module():
    listed = (ROOT / "docs/architecture.md").read_text()
    for path in (ROOT / "src/qgf").rglob("*.py"):
        name = str(path.relative_to(ROOT / "src/qgf"))
        assert name.endswith("__init__.py") or f"`{name}`" in listed, name
