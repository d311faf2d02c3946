"""OGBench's tasks and goals: names, rewards computed from recorded states, five goals."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

from qgf.errors import UserError
from qgf.tasks.ogbench.envs import EnvName, make_env
from qgf.tasks.task import Task

if TYPE_CHECKING:
    from qgf.data.readers import Fields
    from qgf.tasks.ogbench._shards import OGBenchShards


class OGBenchTask(Task):
    """One of OGBench's tasks (…-singletask-taskN-v0), its goals (…-oraclerep-v0), or neither.

    Where no task is named, rewards are 0 and no task ends: enough for behaviour cloning, and for
    goals that are whole observations.
    """

    goals = 5
    normalized = False
    filmed = ({"width": 320, "height": 320}, {"camera": "front_pixels"})
    unjudged = (
        "the run has no critic, so there is no task to evaluate; train one with `qgf train --env "
        "…-singletask-taskN-v0 --policy RUN`"
    )

    def __init__(self, name: str):
        """Raise UserError if there is no such environment."""
        self._name = EnvName.parse(name)
        self.name = name
        self.domain = self._name.dataset if self._name.type else name
        self.rewarded = self._name.singletask
        self.goal_conditioned = self._name.oraclerep
        self.part = "goals" if self._name.oraclerep else f"task{self._name.task or 'default'}"

    def make(self, **kwargs: Any) -> gymnasium.Env:
        return make_env(self.name, **kwargs)

    def judged_by(self, rule: str) -> "OGBenchTask":
        raise UserError(f"{self.name} says itself what success is; leave out --success")

    def success(self, info: dict[str, Any]) -> bool:
        return bool(info["success"])

    def open(
        self,
        path: Path,
        fields: "Fields | None" = None,
        *,
        sparse: bool = False,
        trust: bool = False,
    ) -> "OGBenchShards":
        from qgf.data.manifest import load_manifest, read_manifest
        from qgf.data.readers import Fields
        from qgf.tasks.ogbench._shards import OGBenchShards

        if fields not in (None, Fields()):
            raise UserError(
                f"{self.name} says itself which fields are used; leave out --obs, --action and "
                "--reward"
            )
        manifest = (read_manifest if trust else load_manifest)(path)
        if manifest.name != self._name.dataset:
            raise UserError(
                f"the data in {manifest.folder} are of {manifest.name}, but {self.name} needs "
                f"{self.domain}; collect it or name its folder with --data"
            )
        return OGBenchShards(manifest, self._name, make_env(self.name), sparse)
