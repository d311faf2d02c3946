"""What episodes are judged by: success where the environment says it, else the return."""

from typing import Any, NamedTuple


class Measure(NamedTuple):
    """One way to judge episodes.

    Attributes:
        name: of the figure in `figures`.
        interval: name of its 95% interval there.
        column: of `table`.
        label: what axes and tables call it.
        method: what kind of interval it is.
        style: how a value is written.
    """

    name: str
    interval: str
    column: int
    label: str
    method: str
    style: str

    def text(self, value: float, sign: str = "") -> str:
        """Return a value as people read it; `sign` "+" shows it."""
        return format(value, sign + self.style)

    def between(self, interval: tuple[float, float] | list[float], sign: str = "") -> str:
        """Return an interval as people read it."""
        return f"{self.text(interval[0], sign)} to {self.text(interval[1], sign)}"


SUCCESS = Measure("success", "ci95", 0, "success rate", "Wilson", ".1%")
RETURN = Measure("return", "return_ci95", 1, "return", "bootstrap", ".4g")


def measure_of(result: dict[str, Any]) -> Measure:
    """Return what an evaluation's, or a comparison's, episodes were judged by."""
    by_name = {measure.name: measure for measure in (SUCCESS, RETURN)}
    return by_name[result.get("measure", SUCCESS.name)]  # which version 0.1.0 does not note
