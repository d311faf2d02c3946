"""What users' code gives as numbers, taken strictly."""

from typing import Any

import numpy as np
from jaxtyping import Float


def real_numbers(given: Any) -> Float[np.ndarray, "..."]:
    """Return it in float32, beyond which numbers become infinite.

    NumPy would also read words such as "7" or "nan" as numbers.

    Args:
        given: any array-like.

    Raises:
        TypeError: if it is not real numbers, with their type, or not an array at all.
    """
    try:
        array = np.asarray(given)
    except ValueError as error:  # rows of different lengths
        raise TypeError(str(error)) from None
    # Of types beside NumPy's own (kind "V") bfloat16 and the like are numbers.
    if array.dtype.kind not in "biufV" or not np.can_cast(array.dtype, np.float32, "same_kind"):
        raise TypeError(f"got {array.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
