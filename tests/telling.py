"""What a study tells and draws: the numbers of its words, and the points of its lines."""

import re

import numpy as np

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?")


def tells(text, *values):
    """Whether these numbers stand in the text one after the other, whatever is said between."""
    found = [float(number.replace(",", "")) for number in NUMBER.findall(text)]
    size = len(values)
    return any(found[i : i + size] == [*values] for i in range(len(found) - size + 1))


def draws(axes, x, y, tolerance=0.0):
    """Whether a line has just these points; x may be off by a share of itself."""
    lines = [line.get_xydata().T for line in axes.lines]
    return any(
        len(found[0]) == len(x)
        and np.allclose(found[0], x, rtol=tolerance or 1e-9, atol=0)
        and np.allclose(found[1], y, rtol=0, atol=1e-9, equal_nan=True)
        for found in (np.asarray(line, float) for line in lines)
    )


def intervals(axes):
    """Ends of all intervals drawn, from low to high, as (x, y) pairs of points."""
    return [segment for lines in axes.collections for segment in np.asarray(lines.get_segments())]
