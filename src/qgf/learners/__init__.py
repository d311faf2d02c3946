"""Learners: modules of networks with `create(spec, config, key)` and `loss(batch, key, others)`.

A learner's `targets` names each slowly averaged copy and the network it follows; `needs`
names the roles of other learners its loss consults. What a loss may touch of its own is said
by stop_gradient inside it, and what it sees of `others` carries no gradient; the trainer owns
the optimizer.
"""

from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Array, Float, PRNGKeyArray

from qgf.config import Config, Spec
from qgf.data.dataset import Batch
from qgf.learners.bc import BC
from qgf.learners.bootstrapped import Bootstrapped
from qgf.learners.cfgrl import CFGRL
from qgf.learners.dac import DAC
from qgf.learners.distill import Distilled
from qgf.learners.dqc import DQC
from qgf.learners.edp import EDP
from qgf.learners.fql import FQL
from qgf.learners.goal_iql import GoalIQL
from qgf.learners.iql import IQL
from qgf.learners.monte_carlo import MonteCarlo
from qgf.learners.qam import QAM
from qgf.learners.qsm_bc import QSM
from qgf.learners.robust_q import RobustQ


@runtime_checkable
class Learner(Protocol):
    """What the trainer needs of a method."""

    targets: ClassVar[dict[str, str]]
    needs: ClassVar[tuple[str, ...]]

    @classmethod
    def create(cls, spec: Spec, config: Config, key: PRNGKeyArray) -> "Learner": ...

    def loss(
        self, batch: Batch, key: PRNGKeyArray, others: dict[str, Any]
    ) -> tuple[Float[Array, ""], dict]:
        """Return the loss and metrics.

        Args:
            others: all learners of the run by role, as they are before this step.
        """
        ...


# A run's learners have roles; a role's learner is of the kind of the same name, but for these.
GOAL_CRITICS = ("dqc", "goal-iql")
CRITICS = ("iql", "monte-carlo", *GOAL_CRITICS)
DEFAULT_KINDS = {"policy": "bc", "critic": "iql"}
LEARNERS: dict[str, type[Learner]] = {
    "bc": BC,
    "iql": IQL,
    "bootstrapped": Bootstrapped,
    "robust-q": RobustQ,
    "distill": Distilled,
    "cfgrl": CFGRL,
    "fql": FQL,
    "edp": EDP,
    "qam": QAM,
    "dac": DAC,
    "qsm-bc": QSM,
    "monte-carlo": MonteCarlo,
    "dqc": DQC,
    "goal-iql": GoalIQL,
}
