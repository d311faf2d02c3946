"""Attack qgf with kills, flipped bytes and senseless command lines.

python tests/attack --kills 200 --flips 2000 --commands 1000 --seed 0 --json FILE

Parts may be run apart: what FILE holds of others stays.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
for name in ("kills", "flips", "commands", "seed"):
    parser.add_argument(f"--{name}", type=int, default=0)
parser.add_argument("--json", type=Path)
options = parser.parse_args()
git = ["git", "-C", Path(__file__).parent, "rev-parse", "--short", "HEAD"]
commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()

with tempfile.TemporaryDirectory(prefix="qgf-attack-") as scratch:
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{scratch}/cache")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    # Kills come first: they fork, which a process with threads must not do.
    found = {}
    for name in ("kills", "flips", "commands"):
        if count := getattr(options, name):
            folder = Path(scratch) / name
            folder.mkdir()
            attack = importlib.import_module(name).attack
            found[name] = {
                "command": f"python tests/attack --{name} {count} --seed {options.seed}",
                "commit": commit,
                **attack(folder, count, options.seed, lambda text: print(text, flush=True)),
            }
print(json.dumps(found, indent=1))
if options.json:
    kept = json.loads(options.json.read_text()) if options.json.exists() else {}
    options.json.write_text(json.dumps(kept | found, indent=1) + "\n")
sys.exit(any(each["wrong"] for each in found.values()))
