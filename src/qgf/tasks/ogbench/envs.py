"""OGBench's manipulation environments: names, and a faster, seeded `make_env`."""

import copy
import dataclasses
import itertools
import os
import re
from typing import Any

import gymnasium

from qgf._extras import absent
from qgf.errors import UserError, nearest

DOMAINS = (
    *(f"cube-{n}" for n in ("single", "double", "triple", "quadruple", "octuple")),
    "scene",
    *(f"puzzle-{n}" for n in ("3x3", "4x4", "4x5", "4x6")),
)
DATASET_TYPES = ("play", "noisy")

_NAME = re.compile(
    rf"(?P<domain>{'|'.join(DOMAINS)})"
    rf"(-(?P<type>{'|'.join(DATASET_TYPES)}))?"
    r"(-(?P<singletask>singletask)(-task(?P<task>[1-5]))?|-(?P<oraclerep>oraclerep))?"
    r"-v0"
)


@dataclasses.dataclass(frozen=True)
class EnvName:
    """What an OGBench name such as "cube-single-play-singletask-task2-v0" says.

    Attributes:
        domain: one of `DOMAINS`.
        type: how the dataset was collected, "play" or "noisy"; None if not named.
        singletask: whether rewards and masks are those of one fixed task.
        task: number of that task, 1 to 5; None means OGBench's default task.
        oraclerep: whether goals are given in OGBench's oracle representation.
    """

    domain: str
    type: str | None = None
    singletask: bool = False
    task: int | None = None
    oraclerep: bool = False

    @classmethod
    def parse(cls, name: str) -> "EnvName":
        """Take a name apart.

        Args:
            name: of an environment or dataset of OGBench.

        Returns:
            Its parts.

        Raises:
            UserError: no such environment.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            hint = nearest(name, _known_names())
            raise UserError(f"no environment {name!r}.{hint}")
        task = match["task"]
        return cls(
            domain=match["domain"],
            type=match["type"],
            singletask=match["singletask"] is not None,
            task=None if task is None else int(task),
            oraclerep=match["oraclerep"] is not None,
        )

    @property
    def dataset(self) -> str:
        """Name of the dataset, e.g. "cube-single-play-v0". UserError if none is named."""
        if self.type is None:
            example = f"{self.domain}-{DATASET_TYPES[0]}-v0"
            raise UserError(
                f"the name {self.env_id!r} says no dataset type; write e.g. {example!r}"
            )
        return f"{self.domain}-{self.type}-v0"

    @property
    def env_id(self) -> str:
        """Name under which OGBench registers the environment with Gymnasium."""
        single = "-singletask" if self.singletask else ""
        task = "" if self.task is None else f"-task{self.task}"
        return f"{self.domain}{single}{task}-v0"


def _known_names() -> list[str]:
    types = ("", *(f"-{kind}" for kind in DATASET_TYPES))
    tasks = ("", "-singletask", *(f"-singletask-task{i}" for i in range(1, 6)))
    tails = (*tasks, "-oraclerep")
    return [f"{d}{k}{t}-v0" for d, k, t in itertools.product(DOMAINS, types, tails)]


def make_env(name: str, **kwargs: Any) -> gymnasium.Env:
    """Make an OGBench environment, as `ogbench.make_env_and_datasets(env_only=True)`.

    Given the same state and actions, observations, rewards, success, termination and
    truncation are OGBench's own, bit for bit, at about twice the speed. Unlike there,
    `reset(seed=s)` makes the whole episode a function of `s` and the actions. The
    first environment of a kind takes about two seconds, each further one 0.05 s.

    Arguments:
        name: with or without dataset type, e.g. "scene-play-singletask-task2-v0".
        kwargs: OGBench's own, e.g. `terminate_at_goal=False`, and Gymnasium's
            `max_episode_steps`.

    Returns:
        The environment.

    Raises:
        UserError: no such environment, or MuJoCo does not start.
    """
    parsed = EnvName.parse(name)
    check_simulator()
    # OGBench takes seconds to import; names can be read without it.
    try:
        from qgf.tasks.ogbench import _manipspace, _manipspace_buttons
    except ModuleNotFoundError as error:
        raise (absent(error) or error) from None

    families = {
        "cube": _manipspace.FastCube,
        "scene": _manipspace_buttons.FastScene,
        "puzzle": _manipspace_buttons.FastPuzzle,
    }
    spec = copy.deepcopy(gymnasium.spec(parsed.env_id))
    spec.entry_point = families[parsed.domain.split("-")[0]].make
    if parsed.oraclerep:
        kwargs.setdefault("use_oracle_rep", True)
    return gymnasium.make(spec, disable_env_checker=True, **kwargs)


def state_widths(env: gymnasium.Env) -> dict[str, int]:
    """Return how many numbers each array of a dataset holds per row, by the array's name.

    Environments without buttons have no "button_states".
    """
    base: Any = env.unwrapped
    widths = {
        "observations": env.observation_space.shape[0],
        "actions": env.action_space.shape[0],
        "qpos": base.model.nq,
        "qvel": base.model.nv,
    }
    buttons = getattr(base, "_num_buttons", 0)
    return widths | ({"button_states": buttons} if buttons else {})


def check_simulator() -> None:
    """Raise a UserError if MuJoCo cannot be imported, as with a MUJOCO_GL that is not there."""
    try:
        import mujoco  # noqa: F401
    except ModuleNotFoundError as error:
        raise (absent(error) or error) from None
    except Exception as error:
        backend = os.environ.get("MUJOCO_GL", "")
        raise UserError(
            f"MuJoCo does not start with MUJOCO_GL={backend} ({error}); set MUJOCO_GL=egl, or "
            "MUJOCO_GL=disable where nothing is to be rendered"
        ) from None
