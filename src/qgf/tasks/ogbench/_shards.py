"""OGBench-layout shards, labelled with what a task pays or with goals."""

import threading
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
from ogbench.relabel_utils import add_oracle_reps, relabel_dataset

from qgf.data._npz import own_rewards, read_arrays
from qgf.data.manifest import Manifest, Shard, Split
from qgf.data.trajectories import Trajectories
from qgf.errors import UserError
from qgf.tasks.ogbench.envs import EnvName, state_widths


class OGBenchShards:
    """A folder of OGBench-layout shards, labelled with a task's rewards or with goals.

    See `qgf.data.Source`.
    """

    parts = ()

    def __init__(self, manifest: Manifest, name: EnvName, env: gymnasium.Env, sparse: bool):
        self.manifest = manifest
        self.folder = manifest.folder
        self.name = manifest.name
        self.rewarded = name.singletask
        self._task, self._env, self._sparse = name, env, sparse
        self._using = threading.Lock()  # shards are read in the background, too
        self._widths = state_widths(env)
        self.widths = self._widths["observations"], self._widths["actions"]

    @property
    def rewards(self) -> str:
        used = "none"
        if self.rewarded:
            rule = ", -1 until it is solved" if self._sparse else ""
            used = f"those of {self._task.env_id}, computed from the recorded states{rule}"
        own = own_rewards(self.folder / self.split("train")[0].file)
        return used + (f"; the files' own {' and '.join(own)} are not used" if own else "")

    @property
    def origin(self) -> tuple[str, ...]:
        plan = dict(self.manifest.plan)
        if plan.pop("steps", None) != 1001:  # what `qgf collect` plays
            return ()
        flags = {**plan, "seed": self.manifest.seed, "out": self.folder}
        pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items())
        return ("collect", self.name, *(word for pair in pairs for word in pair))

    def split(self, split: Split) -> list[Shard]:
        return self.manifest.split(split)

    def intact(self, shard: Shard) -> bool:
        return self.manifest.intact(shard)

    def read(self, shard: Shard) -> Trajectories:
        path = self.folder / shard.file
        data = read_arrays(path, self._widths)
        rows, episodes = len(data["terminals"]), int(np.count_nonzero(data["terminals"]))
        if (rows, episodes) != (shard.rows, shard.episodes):
            raise UserError(
                f"{path} has {rows} rows in {episodes} episodes, but the manifest says "
                f"{shard.rows} in {shard.episodes}; collect the data again, or delete the manifest "
                "of downloaded files"
            )
        labels = {"reward": np.zeros(rows, np.float32), "terminated": np.zeros(rows, bool)}
        if self._task.singletask:
            labels = self._reward(path, data)
        if self._task.oraclerep:
            labels["achieved"] = self._goals(path, data)
        return Trajectories(
            observation=data["observations"].astype(np.float32),
            action=data["actions"].astype(np.float32),
            last=data["terminals"] != 0,
            **labels,
        )

    def _reward(self, path: Path, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        instead = f"train without a task, --env {self.name}"
        self._compute(relabel_dataset, path, data, "rewards", instead)
        rewards = -1.0 * (data["rewards"] != 0) if self._sparse else data["rewards"]
        return {"reward": rewards.astype(np.float32), "terminated": data["masks"] == 0}

    def _goals(self, path: Path, data: dict[str, np.ndarray]) -> np.ndarray:
        instead = f"train with --env {self.name} --critic dqc, whose goals are observations"
        self._compute(add_oracle_reps, path, data, "goals", instead)
        return data["oracle_reps"]

    def _compute(
        self, add: Callable, path: Path, data: dict[str, np.ndarray], what: str, instead: str
    ) -> None:
        """Let OGBench add what it computes from the states. UserError if they were not recorded."""
        try:
            with self._using:
                add(self._task.env_id, self._env, data)
        except KeyError as absent:
            raise UserError(
                f"{path} has no {absent}, from which {what} are computed; {instead}"
            ) from None
