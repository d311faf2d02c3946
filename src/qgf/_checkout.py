"""What a checkout of the source holds beside the package."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from qgf.errors import UserError


def import_studies() -> ModuleType:
    """Return the package of studies. UserError if qgf is not installed from a checkout."""
    root = Path(__file__).parents[2]
    if not (root / "studies" / "__init__.py").exists():
        raise UserError(
            "studies are run from a checkout of qgf's source, which an installed wheel does not "
            "hold; clone it and use make setup there"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module("studies")
