"""Q-Guided Flow: test-time improvement of flow policies by a critic's gradient.

actions = qgf.guided_sample(lambda a, t: policy(obs, a, t), lambda a: q(obs, a), noise, weight)
actions = qgf.load("runs/cube").act(obs, key=key, weight=0.03)
"""

import importlib
import warnings
from typing import Any

_PUBLIC = {
    "guided_sample": "qgf.core",
    "best_of_n": "qgf.core",
    "flow_matching_loss": "qgf.core",
    "euler": "qgf.core",
    "Config": "qgf.config",
    "Evaluation": "qgf.run",
    "Fields": "qgf.data",
    "Method": "qgf.methods",
    "Policy": "qgf.act",
    "Run": "qgf.run",
    "Task": "qgf.tasks",
    "Trajectories": "qgf.data",
    "evaluate": "qgf.evaluation",
    "find_task": "qgf.tasks",
    "from_arrays": "qgf.data",
    "load": "qgf.act",
    "reversed_time": "qgf.core",
    "make_env": "qgf.tasks.ogbench",
    "open_recording": "qgf.data",
    "train": "qgf.run",
    "UserError": "qgf.errors",
}
__all__ = list(_PUBLIC)

# MuJoCo's window library complains in every process of a machine without a screen.
warnings.filterwarnings("ignore", ".*X11: The DISPLAY environment variable is missing")
warnings.filterwarnings("ignore", ".*The GLFW library is not initialized")


def __getattr__(name: str) -> Any:
    # Imported on first use: environment processes import this package but never JAX.
    if name not in _PUBLIC:
        raise AttributeError(f"module 'qgf' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
