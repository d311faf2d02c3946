"""Implicit Q-learning with returns of n steps, which see farther than one chunk."""

from dataclasses import dataclass

from jaxtyping import Array, Float

from qgf.data.dataset import Batch
from qgf.learners.iql import IQL


class NStepIQL(IQL):
    """IQL whose Q regresses onto the rewards of n steps and the value that follows them.

    A success n steps ahead reaches Q in one regression instead of n / h, but what comes behind the
    chunk is what the data's own policy did: n = h is IQL, and without an end to n it is the Monte
    Carlo return. Source: n-step returns (Sutton and Barto, chapter 7), uncorrected.
    """

    @dataclass(frozen=True)
    class Hyper(IQL.Hyper):
        horizon: int = 25
        """environment steps whose rewards are counted before a value is taken, at least a chunk"""

        def ahead(self) -> int:
            return self.horizon

    def following(
        self, batch: Batch
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"], Float[Array, "batch obs"]]:
        return batch.ahead[:3]
