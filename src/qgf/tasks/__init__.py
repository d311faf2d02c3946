"""Environments and tasks: where episodes are run, what they pay, what success is.

Nothing here imports JAX, which environment processes do without.
"""

from qgf.tasks.task import Task as Task, find_task as find_task
