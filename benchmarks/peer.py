"""The paper's published code behind a small interface, to measure this library against.

Needs a checkout of the public repository zhouzypaul/qgf and that code's requirements (flax,
ml_collections, distrax) beside ours; nothing of it is shipped here. It brings top-level
packages named `agents`, `envs` and `utils`: run it in a process of its own, `use` first.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import ogbench

from qgf.config import Spec

Arrays = Mapping[str, np.ndarray]


def use(checkout: str | Path | None = None) -> None:
    """Make the checkout, by default at the environment's QGF_PEER, importable."""
    path = Path(checkout or os.environ.get("QGF_PEER", "")).resolve()
    if not (path / "agents" / "qgf.py").is_file():
        raise FileNotFoundError(f"no checkout of zhouzypaul/qgf at {path}; set QGF_PEER")
    sys.path.insert(0, str(path))


def make_agent(
    spec: Spec,
    width: int,
    depth: int,
    batch_size: int = 256,
    discount: float = 0.99,
    seed: int = 0,
) -> Any:
    """Their newly initialised QGF agent, every network with `depth` layers of `width`."""
    from agents.qgf import QGFAgent, get_config

    config, hidden = get_config(), (width,) * depth
    config.update(batch_size=batch_size, discount=discount, expectile=0.9, tau=0.005)
    config.update(horizon_length=spec.chunk, action_chunking=True, denoise_steps=10)
    config.update(bc_lr=3e-4, critic_lr=3e-4, value_lr=3e-4, num_qs=2, q_aggregation="min")
    config.update(actor_hidden_dims=hidden, use_layer_norm=1, activation="gelu")
    config.value_network_kwargs = {"hidden_dims": hidden, "layer_norm": True}
    return QGFAgent.create(seed, np.zeros((1, spec.obs)), np.zeros((1, spec.action)), config)


def train_step(agent: Any, batch: Arrays) -> Any:
    """One update of all their networks on a batch laid out as their `sample_sequence`."""
    return agent.update(dict(batch))[0]


def training_rate(agent: Any, arrays: Arrays, seconds: float) -> float:
    """Steps per second of their loop: draw from the NumPy buffer, update. Once compiled.

    `arrays` has a row per transition: observations, actions, next_observations, rewards,
    masks and terminals.
    """
    from utils.datasets import ReplayBuffer

    rows = len(arrays["observations"])
    buffer = ReplayBuffer.create_from_initial_dataset(dict(arrays), size=rows + 1)
    draw = [agent.config[key] for key in ("batch_size", "horizon_length", "discount")]
    for _ in range(5):
        agent = train_step(agent, buffer.sample_sequence(*draw))
    jax.block_until_ready(agent)
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        agent = train_step(agent, buffer.sample_sequence(*draw))
        steps += 1
    jax.block_until_ready(agent)
    return steps / (time.perf_counter() - start)


def sample(agent: Any, obs: np.ndarray, key: jax.Array, weight: float) -> np.ndarray:
    """Guided actions, flat over the chunk, from the noise `jax.random.normal(key, shape)`.

    Waits for the result: the call's time is the latency that an environment loop sees.
    """
    return np.asarray(agent.sample_actions(obs, seed=key, guidance_weight=weight))


def parameters(agent: Any) -> dict[str, list[dict[str, np.ndarray]]]:
    """Copies of the weights under policy, critic, target_critic and value.

    Each is a list of layers from input to output: kernel (in, out), bias, and scale and
    shift where layer normalisation (epsilon 1e-6) follows, which the policy's last hidden
    layer lacks. The critics' arrays lead with the ensemble axis. Inputs are concatenated:
    observation, action, and for the policy 16 time features, cosines before sines.
    """
    policy = agent.policy.params
    weights = {"policy": _layers(policy["MLP_0"]) + _layers(policy)}
    for name in ("critic", "target_critic", "value"):
        weights[name] = _layers(getattr(agent, name).params["value_net"])
    return weights


def _layers(tree: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
    layers = []
    for i in range(sum(name.startswith("Dense_") for name in tree)):
        dense, norm = tree[f"Dense_{i}"], tree.get(f"LayerNorm_{i}")
        layers.append({"kernel": np.array(dense["kernel"]), "bias": np.array(dense["bias"])})
        if norm:
            layers[-1] |= {
                "scale": np.array(norm["scale"]),
                "shift": np.array(norm["bias"]),
            }
    return layers


def evaluate(
    agent: Any, env_name: str, weights: Sequence[float], episodes: int, num_envs: int
) -> tuple[float, dict[str, float]]:
    """Wall seconds and metrics of their sweep: `episodes` for each guidance weight.

    The environments are wrapped as theirs are and step in `num_envs` processes, a divisor
    of `episodes`. Starting them is not timed (theirs load the data set too); compilation
    is, on an agent's first call.
    """
    from envs.env_utils import EpisodeMonitor
    from utils.evaluation import eval_with_test_time_guidance

    def make_env() -> gymnasium.Env:
        env = ogbench.make_env_and_datasets(env_name, env_only=True)
        return EpisodeMonitor(env, filter_regexes=[".*privileged.*", ".*proprio.*"])

    options = {
        "num_eval_episodes": episodes,
        "rejection_sampling": 1,
        "num_video_episodes": 0,
    }
    envs = gymnasium.vector.AsyncVectorEnv([make_env] * num_envs)
    try:
        start = time.perf_counter()
        metrics, _ = eval_with_test_time_guidance(
            agent, None, envs, guidance_weights=list(map(str, weights)), **options
        )
        return time.perf_counter() - start, {k: float(v) for k, v in metrics.items()}
    finally:
        envs.close()
