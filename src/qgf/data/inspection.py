"""What a recording holds, what is odd about it, and what a critic lacks."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from qgf.data.readers import DEFAULTS, JUDGED, Fields, Recording, held_out
from qgf.data.trajectories import Trajectories
from qgf.errors import UserError

IMAGE = 4
"""axes of a field whose range is not looked for"""


@dataclass(frozen=True)
class Field:
    """One field of a recording.

    Attributes:
        shape: of one row.
        dtype: as recorded.
        low: smallest finite number of the rows that count; None if there is none, or was not
            looked for.
        high: largest one.
        bad: how many rows hold NaN or infinity.
    """

    shape: tuple[int, ...]
    dtype: str
    low: float | None
    high: float | None
    bad: int


@dataclass(frozen=True)
class Inspection:
    """What `qgf data inspect` tells.

    Attributes:
        source, format, files: where the episodes lie, and how.
        episodes: how many there are, and of them for validation.
        validation: how many of them `held_out` sets aside.
        steps: how many actions there are.
        shortest, median, longest: actions of an episode.
        fields: every field that can be used.
        refused: every other one, and why.
        used: what the observation, the action and the reward are taken from.
        width: numbers of an observation and of an action.
        constant_obs, constant_action: dimensions that never change.
        wide_action: dimensions of the action that leave [-1, 1].
        returns: lowest, mean and highest sum of an episode's rewards; None without rewards.
        reward_range: lowest and highest reward.
        solved: share of the episodes that succeed; None if nobody said.
        ended: share of the episodes in which the task ended; None if nobody said.
        unseen: share of the episodes whose last observation was not recorded.
        possible_rewards: what the rewards could be taken from.
        missing: what a critic lacks; empty if nothing.
    """

    source: str
    format: str
    files: tuple[str, ...]
    episodes: int
    validation: int
    steps: int
    shortest: int
    median: float
    longest: int
    fields: dict[str, Field]
    refused: dict[str, str]
    used: dict[str, str]
    width: dict[str, int]
    constant_obs: tuple[int, ...]
    constant_action: tuple[int, ...]
    wide_action: tuple[int, ...]
    reward_range: tuple[float, float] | None
    returns: tuple[float, float, float] | None
    solved: float | None
    ended: float | None
    unseen: float
    possible_rewards: tuple[str, ...]
    missing: tuple[str, ...]


def inspect(recording: Recording, fields: Fields = DEFAULTS) -> Inspection:
    """Look at all of a recording, and at what is used of it.

    Args:
        recording: what `open_recording` or `from_arrays` returned.
        fields: which of its fields would be used.

    Returns:
        What it holds, and what a critic would lack.

    Raises:
        UserError: as `Recording.trajectories`.
    """
    trajectories = recording.trajectories(fields)
    lengths = trajectories.lengths
    of_action = ~trajectories.last
    action = trajectories.action[of_action]
    reward = trajectories.reward
    rewards = None if reward is None else reward[of_action]
    returns = None if reward is None else _per_episode(trajectories, reward)
    return Inspection(
        source=recording.source,
        format=recording.format,
        files=tuple(map(str, recording.files)),
        episodes=len(lengths),
        validation=len(held_out(recording)),
        steps=int(lengths.sum()),
        shortest=int(lengths.min()),
        median=float(np.median(lengths)),
        longest=int(lengths.max()),
        fields={name: _field(recording, name) for name in recording.columns},
        refused=dict(recording.refused),
        used={
            "obs": " ".join(fields.obs or recording.observation),
            "action": fields.action or recording.action or "",
            "reward": fields.reward or recording.reward or "",
        },
        width={
            "obs": trajectories.observation.shape[1],
            "action": trajectories.action.shape[1],
        },
        constant_obs=_constant(trajectories.observation),
        constant_action=_constant(action),
        wide_action=tuple(np.flatnonzero((abs(action) > 1 + 1e-6).any(axis=0)).tolist()),
        reward_range=None if rewards is None else (float(rewards.min()), float(rewards.max())),
        returns=None
        if returns is None
        else (float(returns.min()), float(returns.mean()), float(returns.max())),
        solved=_share(trajectories, trajectories.success),
        ended=_share(trajectories, trajectories.terminated),
        unseen=_share(trajectories, trajectories.unseen) or 0.0,
        possible_rewards=recording.rewards(),
        missing=missing_for_critic(trajectories),
    )


def missing_for_critic(trajectories: Trajectories) -> tuple[str, ...]:
    """Return what keeps a critic from learning from these episodes, one line each.

    Args:
        trajectories: recorded episodes, as a reader gives them.
    """
    reward = trajectories.reward
    if reward is None:
        return ("there are no rewards",)
    of_action = reward[~trajectories.last]
    lines = []
    if of_action.size and (of_action == of_action[0]).all():
        lines.append(f"all rewards are equal ({of_action[0]:g}): a critic learns nothing from them")
    if trajectories.unseen is not None:
        ends = np.flatnonzero(trajectories.unseen)
        ended = trajectories.terminated
        lost = len(ends) if ended is None else int((~ended[ends - 1]).sum())
        if lost:
            lines.append(
                f"the last observation of {lost} episodes, which do not end their task, was not "
                "recorded: their last steps serve the policy alone"
            )
    return tuple(lines)


def check_outcomes(recording: Recording, fields: Fields, trajectories: Trajectories) -> None:
    """Raise UserError if rewards are made of success, and all or no episodes succeed.

    Args:
        recording: what the episodes are of.
        fields: what is used of it.
        trajectories: the episodes with these fields.
    """
    if fields.reward not in JUDGED and not fields.files:
        return
    solved = _share(trajectories, trajectories.success)
    if solved not in (0.0, 1.0):
        return
    if solved:
        why = "all episodes succeed, so that nothing tells a critic what fails"
        how = "add failures, or use last-step to teach it how long success takes"
    else:
        why = "no episode succeeds, so that a critic learns nothing"
        how = "add successes, or say which these are: qgf data label"
    raise UserError(f"{recording.source}: by {fields.reward} {why}; {how}")


def format_inspection(found: Inspection) -> str:
    """Return an inspection as text.

    Args:
        found: what `inspect` returned.
    """
    lines = [
        f"{found.source}: {found.format}, {_count(len(found.files), 'file')}",
        f"{_count(found.episodes, 'episode')} ({found.validation} for validation), "
        f"{_count(found.steps, 'step')}; an episode has {found.shortest} to {found.longest}, "
        f"median {found.median:g}",
        "",
    ]
    width = max(map(len, [*found.fields, *found.refused, "field"]))
    lines.append(f"{'field':{width}}  {'row':12}  {'type':8}  range")
    for name, field in found.fields.items():
        shape = " x ".join(map(str, field.shape)) or "1"
        span = "not looked at" if field.low is None else f"{field.low:.4g} to {field.high:.4g}"
        bad = f"; {field.bad:,} rows with NaN or infinity" if field.bad else ""
        lines.append(f"{name:{width}}  {shape:12}  {field.dtype:8}  {span}{bad}")
    lines += [f"{name:{width}}  left alone: {why}" for name, why in found.refused.items()]
    lines.append("")
    for role in ("obs", "action"):
        lines.append(f"{role}: {found.used[role]} ({found.width[role]} numbers)")
    if found.returns is None or found.reward_range is None:
        lines.append("reward: none")
    else:
        low, mean, high = found.returns
        lines.append(
            f"reward: {found.used['reward']}, {found.reward_range[0]:.4g} to "
            f"{found.reward_range[1]:.4g}; their sum over an episode {low:.4g} to {high:.4g}, "
            f"mean {mean:.4g}"
        )
    lines.append(f"solved: {_percent(found.solved)}; task ended: {_percent(found.ended)}")
    odd = {
        "constant dimensions of the observation": found.constant_obs,
        "constant dimensions of the action": found.constant_action,
        "dimensions of the action outside [-1, 1]": found.wide_action,
    }
    lines += [f"{what}: {', '.join(map(str, which))}" for what, which in odd.items() if which]
    lines += [f"for a critic: {line}" for line in found.missing]
    if found.missing:
        lines.append(f"--reward could be: {', '.join(found.possible_rewards)}")
    return "\n".join(lines)


def _field(recording: Recording, name: str) -> Field:
    column = recording.columns[name]
    low, high, bad = None, None, 0
    if len(column.shape) < IMAGE:
        array = recording.column(name)
        if name not in recording.of_state:
            array = array[~recording.last]
        finite = np.isfinite(array)
        bad = int((~finite.reshape(len(array), -1)).any(axis=1).sum())
        if finite.any():
            low, high = float(array[finite].min()), float(array[finite].max())
    return Field(column.shape[1:], str(column.dtype), low, high, bad)


def _constant(array: Float[np.ndarray, "row width"]) -> tuple[int, ...]:
    return tuple(np.flatnonzero((array == array[:1]).all(axis=0)).tolist())


def _per_episode(
    trajectories: Trajectories, values: Float[np.ndarray, " row"]
) -> Float[np.ndarray, " episode"]:
    """Return the sum over every episode's actions."""
    firsts = trajectories.ends - trajectories.lengths
    return np.add.reduceat(np.where(trajectories.last, 0.0, values), firsts)


def _share(trajectories: Trajectories, marks: np.ndarray | None) -> float | None:
    """Return the share of the episodes that have a mark."""
    if marks is None:
        return None
    firsts = trajectories.ends - trajectories.lengths
    return float(np.logical_or.reduceat(marks, firsts).mean())


def _percent(share: float | None) -> str:
    return "nobody says" if share is None else f"{100 * share:.4g}% of the episodes"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
