"""Environments and tasks: where episodes are run, what they pay, what success is.

Nothing here imports JAX, which environment processes do without.
"""

from qgf.tasks._workers import Reply as Reply, Workers as Workers
from qgf.tasks.task import NO_TASK as NO_TASK, Task as Task, find_task as find_task
