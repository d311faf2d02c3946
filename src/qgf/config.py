"""Settings of training, the form of those of a learner, and the two presets."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from qgf.errors import UserError, check_counts, check_seed


class Spec(NamedTuple):
    """Sizes that the data fix: dimensions of an observation, an action, a chunk, and a goal."""

    obs: int
    action: int
    chunk: int
    goal: int = 0

    @property
    def chunk_action(self) -> int:
        """Dimensions of a flattened action chunk."""
        return self.chunk * self.action


def share(default: float, *, zero: bool = False) -> Any:
    """Return a dataclass field whose values lie in (0, 1]; in [0, 1] with `zero`."""
    return dataclasses.field(default=default, metadata={"share": "[" if zero else "("})


def from_zero(default: float) -> Any:
    """Return a dataclass field whose values are numbers from 0 on."""
    return dataclasses.field(default=default, metadata={"zero": True})


def check_fields(settings: Any) -> None:
    """Raise UserError unless all numbers of a dataclass are counts, shares or positive.

    Those declared by `from_zero` may also be 0.
    """
    for field in dataclasses.fields(settings):
        name, value, bracket = (
            field.name,
            getattr(settings, field.name),
            field.metadata.get("share"),
        )
        if field.type is int:
            check_counts({name: value})
        elif bracket and not (0 < value <= 1 or (bracket == "[" and value == 0)):
            raise UserError(f"{name} must lie in {bracket}0, 1], got {value}")
        elif not bracket and type(value) in (int, float) and not 0 < value < math.inf:
            if not field.metadata.get("zero"):
                raise UserError(f"{name} must be positive, got {value}")
            if value != 0:
                raise UserError(f"{name} must be finite and at least 0, got {value}")


@dataclass(frozen=True)
class Hyper:
    """Hyperparameters that a learner has of its own. Each has a default; its docstring is the help.

    A learner declares them as a dataclass `Hyper` inside it. Those that learners share are declared
    once, in what they inherit from.
    """

    def __post_init__(self) -> None:
        check_fields(self)

    def ahead(self) -> int | None:
        """Return the environment steps that a learner looks ahead, or None for those of a chunk."""
        return None


Own = TypeVar("Own", bound=Hyper)


@dataclass(frozen=True)
class Config:
    """The settings of a training run, beside its data and seeds."""

    steps: int = 20_000
    """gradient steps"""
    batch_size: int = 256
    """action chunks per gradient step"""
    width: int = 256
    """units of a hidden layer, for all networks"""
    depth: int = 3
    """hidden layers, for all networks"""
    learning_rate: float = 3e-4
    """Adam's step size, constant"""
    chunk: int = 5
    """environment steps that one action chunk covers (h)"""
    denoise_steps: int = 10
    """Euler steps from noise to action (T)"""
    discount: float = share(0.99)
    """discount γ per environment step"""
    target_rate: float = share(0.005)
    """share of the online Q that enters the target Q at every step"""
    sparse_rewards: bool = False
    """reward -1 until a task is solved and 0 then, in place of the task's own (which, with
    several objects, counts those not in place)"""
    dispatch_steps: int = 100
    """gradient steps compiled into one device call"""
    normalize_observations: Literal["auto", "none", "standard"] = "auto"
    """to mean 0 and deviation 1; auto: as the task's data are used to, none for OGBench's"""
    normalize_actions: Literal["auto", "none", "range", "quantiles"] = "auto"
    """least and greatest, or the quantiles of 1 and 99 per cent, to [-1, 1]"""
    log_every: int = 500
    """gradient steps between lines of metrics.jsonl"""
    validate_every: int = 2_000
    """gradient steps between validation losses"""
    checkpoint_every: int = 5_000
    """gradient steps between checkpoints"""
    keep: int = 2
    """latest checkpoints kept"""
    resident_gb: float = 4.0
    """gigabytes of data held at once; larger sets are read in parts while training goes on"""
    rotate_every: int = 5_000
    """gradient steps on each part of a set that does not fit, on average over a pass"""

    hyper: tuple[Hyper, ...] = ()
    """hyperparameters of learners; others have their defaults"""

    def __post_init__(self) -> None:
        check_fields(self)
        wrong = [each for each in self.hyper if not isinstance(each, Hyper)]
        if wrong or len({type(each) for each in self.hyper}) < len({*self.hyper}):
            raise UserError(
                "hyper must hold hyperparameters of different learners, as in "
                f"(IQL.Hyper(expectile=0.7), BC.Hyper()), got {self.hyper}"
            )
        # What says the same is equal.
        kept = (each for each in {*self.hyper} if each != type(each)())
        object.__setattr__(self, "hyper", tuple(sorted(kept, key=lambda each: repr(type(each)))))
        for name in ("log_every", "validate_every", "checkpoint_every", "rotate_every"):
            if getattr(self, name) % self.dispatch_steps:
                raise UserError(
                    f"{name} must be a multiple of dispatch_steps ({self.dispatch_steps}), "
                    f"got {getattr(self, name)}"
                )

    def of(self, kind: type[Own]) -> Own:
        """Return the hyperparameters of a learner, `kind` being its class of them.

        Args:
            kind: the class, such as `IQL.Hyper`.
        """
        return next((each for each in self.hyper if type(each) is kind), kind())

    def having(self, *hyper: Hyper) -> "Config":
        """Return these settings with other hyperparameters of the learners that these are of.

        Args:
            hyper: instances such as `IQL.Hyper(expectile=0.8)`.
        """
        kinds = {type(each) for each in hyper}
        others = (each for each in self.hyper if type(each) not in kinds)
        return dataclasses.replace(self, hyper=(*others, *hyper))


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise a UserError unless all are training seeds, that is 32-bit numbers from 0 on."""
    for seed in seeds:
        check_seed("a training seed", seed)


PRESETS = {
    "laptop": Config(),
    "paper": Config(
        steps=500_000,
        batch_size=1024,
        width=1024,
        depth=4,
        discount=0.999,
        log_every=5_000,
        validate_every=10_000,
        checkpoint_every=50_000,
    ),
}
