"""The built wheel in an environment of its own, with what the core asks for and nothing else."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from test_own_data import arrays

ROOT = Path(__file__).parent.parent
ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
SCRIPT = """
import sys
import numpy as np, jax, qgf
data = np.load("mine.npz")
sizes = dict(steps=20, width=8, depth=1, batch_size=8, chunk=3, dispatch_steps=10, log_every=10)
config = qgf.Config(**sizes, validate_every=20, checkpoint_every=20, rotate_every=10)
run = qgf.train("none", qgf.from_arrays(**data), "run", config)
print(qgf.load(run.path).act(np.zeros(3, np.float32), key=jax.random.key(0)).shape)
extras = ("ogbench", "mujoco", "matplotlib", "h5py", "pyarrow", "torch")
print([name for name in extras if name in sys.modules])
"""


@pytest.mark.slow
def test_the_core_alone_trains_on_arrays(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", tmp_path, source]
    subprocess.run([sys.executable, "-m", "pip", *map(str, wheel)], check=True)
    (built,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    pins = ["-c", ROOT / "requirements.txt"]
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]
    subprocess.run([*install, built], check=True, env=ALONE)
    np.savez(tmp_path / "mine.npz", **arrays())
    done = subprocess.run(
        [python, "-c", SCRIPT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env=ALONE,
    )
    assert done.stdout.splitlines() == ["rewards: reward", "(3, 2)", "[]"]
    for command, extra in (
        (["collect", "cube-single-play-v0", "--out", "data"], "ogbench"),
        (["report", "run"], "plots"),
        (["study", "toy"], "checkout"),
    ):
        ended = subprocess.run(
            [tmp_path / "env" / "bin" / "qgf", *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=ALONE,
        )
        assert ended.returncode == 2 and extra in ended.stderr and ended.stderr.count("\n") == 1
