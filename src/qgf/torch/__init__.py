"""Guidance for flow policies in PyTorch, and this package's critics as PyTorch modules.

actions = qgf.torch.guided_sample(lambda a, t: policy(obs, a, t), lambda a: q(obs, a), noise, 0.1)

It imports JAX only for a critic in JAX (`from_jax`).
"""

from qgf._extras import absent

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise absent(error) or error from None

from qgf.errors import FAILED as FAILED
from qgf.torch._jax import from_jax as from_jax
from qgf.torch.critic import Critic as Critic, load_critic as load_critic
from qgf.torch.guidance import (
    ESTIMATORS as ESTIMATORS,
    Bounds as Bounds,
    Estimator as Estimator,
    Velocity as Velocity,
    guided_sample as guided_sample,
    guided_sample_counting as guided_sample_counting,
    reversed_time as reversed_time,
)
