"""Hyperparameters of training, and the two presets."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from qgf.core.critic import Aggregation
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


@dataclass(frozen=True)
class Config:
    """Every number a training run depends on, beside its data and seeds."""

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
    times: Literal["uniform", "grid"] = "uniform"
    """flow times of the BC loss: U[0, 1], or the grid that sampling visits"""
    discount: float = 0.99
    """discount γ per environment step"""
    expectile: float = 0.9
    """expectile of the value regression"""
    ensemble: int = 2
    """Q networks"""
    aggregation: Aggregation = "min"
    """how the ensemble's values become one"""
    target_rate: float = 0.005
    """share of the online Q that enters the target Q at every step"""
    bc_weight: float | None = None
    """weight of the imitation term of train-time methods (FQL's α, EDP's λ, DAC's α, QSM's α);
    by default the method's own"""
    temperature: float | None = None
    """scale τ of the critic's gradient in train-time methods (QAM, QSM); by default the
    method's own"""
    sparse_rewards: bool = False
    """reward -1 until a task is solved and 0 then, in place of the task's own (which, with
    several objects, counts those not in place)"""
    critic_chunk: int = 25
    """environment steps that DQC's chunk critic covers (h_c), and over which it backs up"""
    chunk_critic: bool = True
    """whether DQC has a chunk critic; without, its action critic takes the backup itself"""
    backup: Literal["quantile", "expectile"] = "quantile"
    """regression of DQC's value onto the action critic"""
    backup_level: float = 0.93
    """which quantile or expectile of it (κ_b)"""
    distill_expectile: float = 0.8
    """expectile of DQC's action critic over the chunk critic (κ_d)"""
    goal_current: float = 0.2
    """share of training goals that are the current state"""
    goal_trajectory: float = 0.5
    """share of training goals ahead in the same trajectory; the rest are random states"""
    goal_sampling: Literal["uniform", "geometric"] = "uniform"
    """how goals ahead are drawn: all alike, or so many steps ahead with probability ~ γ^steps"""
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
    """gigabytes of data held on the device at once; larger sets rotate through it"""
    rotate_every: int = 1_000
    """gradient steps between rotations of a set that does not fit"""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            positive = type(value) not in (int, float) or name.startswith("goal_") or value > 0
            if field.type is int:
                check_counts({name: value})
            elif not positive or (type(value) is float and not math.isfinite(value)):
                raise UserError(f"{name} must be positive, got {value}")
        for name in ("expectile", "target_rate", "discount", "backup_level", "distill_expectile"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} must lie in (0, 1], got {getattr(self, name)}")
        shares = (self.goal_current, self.goal_trajectory)
        if min(shares) < 0 or sum(shares) > 1:
            raise UserError(
                "goal_current and goal_trajectory must be shares that sum to at most 1, got "
                f"{shares[0]} and {shares[1]}"
            )
        for name in ("log_every", "validate_every", "checkpoint_every", "rotate_every"):
            if getattr(self, name) % self.dispatch_steps:
                raise UserError(
                    f"{name} must be a multiple of dispatch_steps ({self.dispatch_steps}), "
                    f"got {getattr(self, name)}"
                )


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
