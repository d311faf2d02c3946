"""Flip bytes of every file that commands read, cut files off, and watch what commands say.

After each damage the commands that read the file run, in this process. Each must either say in
one line what is damaged (exit code 2) or do exactly what it does with intact files: a flip of
white space changes nothing. A result that differs and a traceback are faults.
"""

import contextlib
import io
import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from kills import FEW, NAME, TASK, TRAINING

import qgf.cli
from qgf.act.policy import Policy
from qgf.data.manifest import load_manifest
from qgf.tasks.ogbench.collect import collect

Result = tuple[int | None, str]
"""exit code and one line, or no code and what the command came to"""


def said(act: Callable[[], str]) -> Result:
    """Run a command; return how it ended."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            return None, act()
        except SystemExit as stop:
            return stop.code, error.getvalue()


def run(line: str) -> None:
    qgf.cli.main(line.split())


class Readers:
    """The commands that read a run and its data; each returns what it came to, as text."""

    def __init__(self, folder: Path) -> None:
        self.run, self.data = folder / "run", folder / "data"

    def act(self) -> str:
        obs = np.linspace(-1, 1, 28, dtype=np.float32)
        try:
            return str(Policy(self.run).act(obs, key=jax.random.key(0)).tolist())
        except qgf.UserError as error:
            qgf.cli._fail(str(error))

    def resume(self) -> str:
        out = shutil.copytree(self.run, self.run.with_name("resumed"), dirs_exist_ok=True)
        try:
            run(f"train --env {TASK} --data {self.data} --out {out} {TRAINING} --steps 50 --resume")
            last = out / "checkpoints" / "00000050"
            return str([path.read_bytes() for path in sorted(last.iterdir())])
        finally:
            shutil.rmtree(out)

    def report(self) -> str:
        run(f"report {self.run} --no-video")
        return (self.run / "report.html").read_text()

    def manifest(self) -> str:
        try:
            return str(load_manifest(self.data))
        except qgf.UserError as error:
            qgf.cli._fail(str(error))

    def collect(self) -> str:
        """A collection that goes on makes damaged files again."""
        run(
            f"collect {NAME} --out {self.data} --episodes 2 --val-episodes 1 --shard-episodes 2 "
            "--workers 1"
        )
        return str({path.name: path.read_bytes() for path in sorted(self.data.iterdir())})


READERS: dict[str, tuple[Callable[[Readers], str], ...]] = {
    "config.json": (Readers.act, Readers.resume, Readers.report),
    "policy.safetensors": (Readers.act, Readers.resume),
    "critic.safetensors": (Readers.act, Readers.resume),
    "optimizer.safetensors": (Readers.resume,),
    "state.json": (Readers.act, Readers.resume),
    "metrics.jsonl": (Readers.report, Readers.resume),
    "eval.json": (Readers.act, Readers.report),
    "manifest.json": (Readers.manifest, Readers.collect),
    f"{NAME}.npz": (Readers.manifest, Readers.collect),
    f"{NAME}-val.npz": (Readers.manifest, Readers.collect),
}


def damage(content: bytes, rng: random.Random) -> bytes:
    """Return the content with a byte changed or, one time in ten, cut off."""
    at = rng.randrange(len(content))
    if rng.random() < 0.1:
        return content[:at]
    flipped = content[at] ^ rng.choice([1 << rng.randrange(8), rng.randrange(1, 256)])
    return content[:at] + bytes([flipped]) + content[at + 1 :]


def attack(folder: Path, count: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Damage a file `count` times; return how often that was said, and what went wrong."""
    readers, rng = Readers(folder), random.Random(seed)
    collect.__defaults__ = (101,)  # episodes of a hundred steps
    readers.collect()
    run(f"train --env {TASK} --data {readers.data} --out {readers.run} {TRAINING} --keep 1")
    run(f"eval {readers.run} --weights 0.1 {FEW}")
    readers.report()
    every = [path for path in folder.rglob("*") if path.name in READERS]
    missing = READERS.keys() - {path.name for path in every}
    assert not missing, f"not there: {missing}"
    whole = {path: path.read_bytes() for path in every}
    right = {reader: reader(readers) for reader in {*itertools.chain(*READERS.values())}}
    say(f"flips: seed {seed}; files: {len(every)}")
    noticed, harmless, wrong = 0, 0, []
    for _ in range(count):
        path = rng.choice(every)
        damaged = damage(whole[path], rng)
        for reader in READERS[path.name]:
            path.write_bytes(damaged)
            try:
                code, text = said(lambda reader=reader: reader(readers))
            except Exception as error:
                code, text = 1, f"traceback: {error!r}"
            finally:
                for restored, content in whole.items():
                    restored.write_bytes(content)
            if code == 2 and text.startswith("qgf: ") and text.count("\n") == 1:
                noticed += 1
            elif code is None and text == right[reader]:
                harmless += 1
                # What ran to its end compiled programs; thousands of them are more than a process
                # may map into its memory.
                eqx.clear_caches()
                jax.clear_caches()
            else:
                at = next(
                    (
                        i
                        for i, (a, b) in enumerate(zip(damaged, whole[path], strict=False))
                        if a != b
                    ),
                    len(damaged),
                )
                what = text[-300:] if code is not None else "another result, in silence"
                wrong.append(f"{path.name} at byte {at}, read by {reader.__name__}: {what}")
                say(wrong[-1])
    return {
        "seed": seed,
        "count": count,
        "noticed": noticed,
        "harmless": harmless,
        "wrong": wrong,
    }
