"""The attack (see `python tests/attack --help`) in a small form, each part with its own seed."""

import subprocess
import sys
from pathlib import Path

import pytest

ATTACK = Path(__file__).parent / "attack"


@pytest.mark.slow
@pytest.mark.parametrize("part, count", [("kills", 3), ("flips", 20), ("commands", 40)])
def test_attack(part, count):
    command = [sys.executable, ATTACK, f"--{part}", str(count), "--seed", "0"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-5000:] + ended.stderr[-5000:]
