"""Learners: one file each, and the table of all of them.

What a loss may touch of its own is said by stop_gradient inside it, and what it sees of
`others` carries no gradient; the trainer owns the optimizer.
"""

import dataclasses
from collections.abc import Iterable

from qgf.config import Config
from qgf.learners._learner import EnsembleCritic, Learner as Learner
from qgf.learners.bc import BC
from qgf.learners.bootstrapped import Bootstrapped
from qgf.learners.cfgrl import CFGRL
from qgf.learners.dac import DAC
from qgf.learners.distill import Distilled
from qgf.learners.dqc import DQC
from qgf.learners.edp import EDP
from qgf.learners.emaq import EMaQ
from qgf.learners.fql import FQL
from qgf.learners.goal_iql import GoalIQL
from qgf.learners.iql import IQL
from qgf.learners.monte_carlo import MonteCarlo
from qgf.learners.n_step import NStepIQL
from qgf.learners.qam import QAM
from qgf.learners.qsm_bc import QSM
from qgf.learners.robust_q import RobustQ
from qgf.learners.task_dqc import TaskDQC

# A run's learners have roles; a role's learner is of the kind of the same name, but for these.
DEFAULT_KINDS = {"policy": "bc", "critic": "iql"}
"""kind of the learner of a role, where it is not of the role's name"""
DEFAULT_GOAL_CRITIC = "dqc"
"""kind of the critic of goals"""
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
    "n-step": NStepIQL,
    "dqc": DQC,
    "goal-iql": GoalIQL,
    "task-dqc": TaskDQC,
    "emaq": EMaQ,
}
"""all kinds of learners by name"""
# What --critic names: critics that learn from the data alone.
CRITICS = {
    name: kind
    for name, kind in LEARNERS.items()
    if issubclass(kind, EnsembleCritic) and not kind.needs
}
"""critics that learn from the data alone, by the name that --critic takes"""


def only(config: Config, kinds: Iterable[str]) -> Config:
    """Return the settings with the hyperparameters of learners of these kinds alone.

    Args:
        config: settings with any hyperparameters.
        kinds: names of LEARNERS.
    """
    return dataclasses.replace(
        config, hyper=tuple({config.of(LEARNERS[kind].Hyper) for kind in kinds})
    )
