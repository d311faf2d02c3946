"""Functions of a user's own, named on the command line or in a record."""

import importlib
import sys
from collections.abc import Callable

from qgf.errors import UserError, first_line, nearest


def import_function(name: str) -> Callable:
    """Return a function named "module:function"; modules in the current folder are found too.

    Raises:
        UserError: there is none.
    """
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"cannot import {module_name!r} of {name!r}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        callables = [key for key, value in vars(module).items() if callable(value)]
        raise UserError(
            f"{module_name} has no function {function_name!r}.{nearest(function_name, callables)}"
        )
    return function
