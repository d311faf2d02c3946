"""What an action of a method costs: milliseconds on this machine, and operations."""

import time
from collections.abc import Callable

import equinox as eqx
import jax
import numpy as np

from qgf.config import Spec
from qgf.methods import Learners, Method

CALLS = 20  # timed calls


def milliseconds(act: Callable, spec: Spec, weight: float, batch: int) -> float:
    """Return the median time of a call for `batch` observations."""
    obs = np.zeros((1, batch, spec.obs), np.float32)
    goal = np.zeros((1, batch, spec.goal), np.float32)
    weights, numbers = np.full((1, batch), weight, np.float32), np.zeros((1, batch), np.int32)
    times = []
    for _ in range(1 + CALLS):
        start = time.perf_counter()
        jax.block_until_ready(act(obs, goal, weights, numbers, numbers))
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times[1:]))  # the first call compiles


def flops(method: Method, learners: Learners) -> int:
    """Return the floating-point operations of one sample's matrix products.

    A product with a kernel costs two operations an entry, forward and backward alike.
    """

    def kernels(tree: object) -> int:
        leaves = jax.tree_util.tree_flatten_with_path(eqx.filter(tree, eqx.is_array))[0]
        return sum(leaf.size for at, leaf in leaves if "kernels" in jax.tree_util.keystr(at))

    forward, backward, q_forward, q_backward = method.evaluations
    actor_role = next((r for r in method.roles if r not in ("critic", "robust-q")), "policy")
    critic = learners.get("robust-q", learners.get("critic"))
    members = 1 if critic is None or "robust-q" in learners else len(critic.target_q.members)
    q_kernels = 0 if critic is None else kernels(getattr(critic, "target_q", critic)) // members
    policy = kernels(learners[actor_role])
    return 2 * ((forward + backward) * policy + (q_forward + q_backward) * q_kernels)
