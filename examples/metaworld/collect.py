"""Episodes of Meta-World's scripted experts, with noise: python -m examples.metaworld.collect TASK

The noise is that of OGBench's "noisy" data (Park et al. 2025): every episode draws a scale of its
own, each action gets Gaussian noise of that scale, and now and then an action is random. Scales
reach NOISE, at which no task is solved, so a clone of the mixture often fails. The file has D4RL's
layout; one seed gives the same arrays.
"""

import argparse
import warnings
from pathlib import Path

import gymnasium
import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from examples.metaworld import tasks
from qgf.files import atomic_open

NOISE = 2.0
"""greatest scale of an episode's noise; actions lie in [-1, 1]"""
RANDOM = 0.1
"""probability that an action is random"""
Arrays = dict[str, np.ndarray]


def collect(name: str, episodes: int, seed: int) -> Arrays:
    """Return recorded episodes of a task in D4RL's layout, one row for every action."""
    env = tasks.make(name)
    expert = ENV_POLICY_MAP[f"{name}-v3"]()
    recorded = [episode(env, expert, np.random.default_rng([seed, i])) for i in range(episodes)]
    return {key: np.concatenate([one[key] for one in recorded]) for key in recorded[0]}


def episode(env: gymnasium.Env, expert, rng: np.random.Generator) -> Arrays:
    """Return one episode of the expert with noise, all drawn from `rng`."""
    scale = rng.uniform(0, NOISE)
    rows = []
    obs, _ = env.reset(seed=int(rng.integers(2**31)))
    done = False
    while not done:
        if rng.random() < RANDOM:
            action = rng.uniform(-1, 1, 4)
        else:
            # Its commands for the hand reach beyond what the environment takes.
            action = np.clip(expert.get_action(obs), -1, 1) + scale * rng.normal(size=4)
        action = np.clip(action, -1, 1).astype(np.float32)
        after, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, reward, terminated, truncated, after))
        obs, done = after, terminated or truncated
    keys = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    kinds = (np.float32, np.float32, np.float32, bool, bool, np.float32)
    columns = zip(keys, zip(*rows, strict=True), kinds, strict=True)
    return {key: np.array(column, kind) for key, column, kind in columns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", help='Meta-World\'s name without its version, e.g. "hammer"')
    parser.add_argument("--out", type=Path, required=True, help="file to write (npz)")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "Constant\\(s\\) may be too high")  # they are clipped here
    arrays = collect(args.task, args.episodes, args.seed)
    with atomic_open(args.out) as file:
        np.savez(file, **arrays)
    solved = arrays["terminals"].sum() / args.episodes
    print(f"{args.out}: {len(arrays['actions'])} steps, {solved:.0%} of the episodes solved")


if __name__ == "__main__":
    main()
