"""Learners: modules of networks with `create(spec, config, key)` and `loss(batch, key)`.

A learner's `targets` names each slowly averaged copy and the network it follows. What a
loss may touch is said by stop_gradient inside it; train.py owns the optimizer.
"""

from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.data.dataset import Batch
from qgf.learners.bc import BC
from qgf.learners.iql import IQL


@runtime_checkable
class Learner(Protocol):
    """What train.py needs of a method."""

    targets: ClassVar[dict[str, str]]

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "Learner": ...

    def loss(self, batch: Batch, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]: ...


LEARNERS: dict[str, type[Learner]] = {"policy": BC, "critic": IQL}
