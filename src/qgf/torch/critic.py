"""A run's critic as a PyTorch module, read without JAX."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qgf._folders import kinds_held, learner_file, read_arrays, read_run, seed_index
from qgf.config import Spec
from qgf.errors import UserError
from qgf.torch import guidance


def deviation(values: Float[Tensor, "member batch"]) -> Float[Tensor, " batch"]:
    """Return √(mean of (Q_i − mean)²), whose gradient is 0 where all members agree."""
    variance = (values - values.mean(0)).square().mean(0)
    differ = variance > 0
    return torch.where(differ, torch.where(differ, variance, 1).sqrt(), 0)


# `qgf.core.critic.aggregate`: of (values, κ).
AGGREGATIONS = {
    "min": lambda values, kappa: values.min(0).values,
    "mean": lambda values, kappa: values.mean(0) - kappa * deviation(values),
}


class Critic(nn.Module):
    """An ensemble Q(s, a) of action chunks, aggregated as its run says.

    `critic.to(device)` moves it. It is in evaluation, and none of its parameters asks for a
    gradient.

    Attributes:
        spec: sizes of an observation, an action, a chunk, and a goal (0 if it takes none).
        members: the networks, which take [observation, goal, action chunk].
        aggregation: how their values become one, a name of `AGGREGATIONS`.
        kappa: deviations κ that are taken off the mean.
    """

    def __init__(
        self,
        spec: Spec,
        members: list[nn.Sequential],
        aggregation: str,
        kappa: float,
        normalization: dict,
    ):
        """See `load_critic`.

        Args:
            normalization: as config.json has it.
        """
        super().__init__()
        self.spec, self.members = spec, nn.ModuleList(members)
        self.aggregation, self.kappa = aggregation, kappa
        for name, size in (("observation", spec.obs), ("action", spec.action)):
            affine = normalization.get(name) or {"shift": [0.0] * size, "scale": [1.0] * size}
            for part in ("shift", "scale"):
                self.register_buffer(f"{name}_{part}", torch.tensor(affine[part]))
        self.eval().requires_grad_(False)

    def at(
        self,
        obs: Float[Tensor | np.ndarray, "batch obs"],
        goal: Float[Tensor | np.ndarray, "*goals goal"] | None = None,
    ) -> guidance.Critic:
        """Return q(action) -> values of shape (batch,) at these observations.

        The actions are chunks (batch, chunk, action), flattened or not, in the units of the
        networks: within [-1, 1], where the sampler works. `normalize` makes them of the data's.

        Args:
            obs: (batch, obs), in the units of the data.
            goal: where to, one or one per row, if the critic was trained on goals.

        Raises:
            UserError: an observation or goal of another size or not finite, a goal missing or not
                asked for.
        """
        # Gradients need what was not made in inference mode.
        with torch.inference_mode(False):
            obs = self._numbers(obs, "an observation", self.spec.obs)
            if obs.ndim != 2:
                raise UserError(f"observations must be of shape (batch, {self.spec.obs})")
            state = (obs - self.observation_shift) / self.observation_scale
            if self.spec.goal and goal is None:
                raise UserError(f"the critic is one of goals; name one, {self.spec.goal} numbers")
            if goal is not None and not self.spec.goal:
                raise UserError("the critic takes no goal; leave it out")
            if goal is not None:
                goal = self._numbers(goal, "a goal", self.spec.goal)
                if goal.shape[:-1] not in ((), obs.shape[:1]):
                    raise UserError(f"goal must be one or one for each of {len(obs)} observations")
                state = torch.cat([state, goal.expand(len(obs), -1)], -1)
        return lambda action: self(state, action)

    def forward(
        self, state: Float[Tensor, "batch state"], action: Float[Tensor, "batch *chunk"]
    ) -> Float[Tensor, " batch"]:
        """Return Q of normalized observations, with goals behind them, and action chunks.

        Args:
            state: normalized observations, with goals behind them if it takes goals.
            action: chunks (batch, chunk, action), flattened or not, in [-1, 1].
        """
        size = self.spec.chunk_action
        if len(action) != len(state) or action[:1].numel() not in (0, size):
            raise UserError(
                f"action chunks must be {size} numbers for each of {len(state)} observations, got "
                f"shape {tuple(action.shape)}"
            )
        inputs = torch.cat([state, action.flatten(1).to(state.dtype)], -1)
        values = torch.stack([member(inputs)[:, 0] for member in self.members])
        return AGGREGATIONS[self.aggregation](values, self.kappa)

    def normalize(self, action: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        """Return actions in the data's units as the networks learned them; it does not clip.

        Args:
            action: actions in the units of the data.
        """
        return (action - self.action_shift) / self.action_scale

    def _numbers(self, x: Any, what: str, size: int) -> Float[Tensor, "*batch _"]:
        try:
            like = self.observation_shift
            given = torch.as_tensor(x, dtype=like.dtype, device=like.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{what} must be an array of numbers") from error
        if given.shape[-1:] != (size,) or not given.isfinite().all():
            raise UserError(
                f"{what} must be {size} finite numbers, got shape {tuple(given.shape)}"
                + ("" if given.isfinite().all() else " with NaN or infinity")
            )
        return given


def load_critic(run: str | Path, *, checkpoint: str = "last", seed: int | None = None) -> Critic:
    """Read a run's critic, of a task or of goals, for one training seed. JAX is not imported.

    It gives the numbers that the run's own, in JAX, gives: those of its target networks.

    Args:
        run: the run's folder.
        checkpoint: "last" or a step's number.
        seed: one of the run's training seeds; the first by default.

    Returns:
        The critic, a module of PyTorch.

    Raises:
        UserError: no such run, checkpoint or seed, no critic in it, one that is no ensemble, or a
            file is damaged.
    """
    run = Path(run)
    record = read_run(run)
    path, digest = learner_file(run, record, "critic", checkpoint)
    index = seed_index(run, record, "critic", record["seeds"][0] if seed is None else seed)
    arrays = {name: array[index] for name, array in read_arrays(path, digest).items()}
    # Gradients need what was not made in inference mode.
    with torch.inference_mode(False):
        return Critic(
            Spec(**record["spec"]),
            _members(arrays, Spec(**record["spec"]), path),
            *_aggregation(record, path),
            record.get("normalization", {}),
        )


def _aggregation(record: dict[str, Any], path: Path) -> tuple[str, float]:
    """Return how the critic's ensemble becomes one Q, and κ.

    Up to format 2 it stood among the others' settings.
    """
    settings = record["borrowed"].get("critic", record)["config"]
    own = settings.get("hyper", {}).get(kinds_held(record)["critic"], settings)
    name = own.get("aggregation") or "min"
    if name not in AGGREGATIONS:
        raise UserError(f"{path}: its aggregation, {name!r:.40}, is not one that PyTorch has")
    return name, float(own.get("kappa") or 0)


def _members(arrays: dict[str, np.ndarray], spec: Spec, path: Path) -> list[nn.Sequential]:
    """Return the networks of the target ensemble. UserError if there are none, or others."""
    names = (re.fullmatch(r"target_q\.members\.(\d+)\..*", name) for name in arrays)
    count = 1 + max((int(name[1]) for name in names if name), default=-1)
    if not count:
        raise UserError(f"{path} holds no ensemble of Q networks, which is all that PyTorch reads")
    probe = torch.zeros(1, spec.obs + spec.goal + spec.chunk_action)
    try:
        members = [_network(arrays, f"target_q.members.{i}") for i in range(count)]
        fit = all(member(probe).shape == (1, 1) for member in members)
    except (KeyError, TypeError, RuntimeError):
        fit = False
    if not fit:
        raise UserError(f"{path} does not fit its config.json: target_q differs")
    return members


def _network(arrays: dict[str, np.ndarray], place: str) -> nn.Sequential:
    """Return `qgf.core.networks.MLP` of the arrays that stand at a place."""
    layers: list[nn.Module] = []
    for i in itertools.count():
        kernel, scale = (
            arrays.get(f"{place}.{name}") for name in (f"kernels.{i}", f"scales.{i - 1}")
        )
        if kernel is None:
            return nn.Sequential(*layers)
        if scale is not None:
            norm = nn.LayerNorm(len(scale), eps=1e-6)
            layers.append(_filled(norm, scale, arrays[f"{place}.shifts.{i - 1}"]))
        if layers:
            layers.append(nn.GELU("tanh"))
        linear = nn.Linear(*kernel.shape)
        layers.append(_filled(linear, kernel.T, arrays[f"{place}.biases.{i}"]))


def _filled(layer: nn.Module, weight: np.ndarray, bias: np.ndarray) -> nn.Module:
    layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return layer
