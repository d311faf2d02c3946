"""EMaQ (arXiv 2007.11091): the best of a few actions of the cloned policy follows."""

from dataclasses import dataclass
from typing import ClassVar

from qgf.learners.bootstrapped import Bootstrapped


class EMaQ(Bootstrapped):
    """An ensemble Q of acting with the best of N samples of the run's policy, from s' on.

    Q regresses onto R + γ^h m max_n Q̄(s', a'_n) at actions a'_n that the cloned flow samples. No
    actor is trained, and none can leave the data: N = 1 is the policy's own value (SARSA), a
    larger N rises to the best that the policy does at all. The ensemble is aggregated as
    everywhere here, by default by its min.
    """

    needs: ClassVar[tuple[str, ...]] = ("policy",)

    @dataclass(frozen=True)
    class Hyper(Bootstrapped.Hyper):
        next_samples: int = 4
        """samples of the policy of which the best follows (N)"""

    @property
    def draws(self) -> int:
        return self.hyper.next_samples
