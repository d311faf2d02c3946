"""Environment processes for evaluation: each steps its own environments, chunk by chunk."""

import contextlib
import multiprocessing
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from qgf._processes import follow_parent, worker_start
from qgf.errors import UserError, first_line
from qgf.tasks.task import Task


class Reply(NamedTuple):
    """What a slot's environment answers to a reset or a chunk of actions.

    reward and length count the environment steps taken since the last reply; a reset says
    the goal, where the environment has one.
    """

    obs: np.ndarray
    reward: float = 0.0
    length: int = 0
    done: bool = False
    success: bool | None = None
    goal: np.ndarray | None = None


class Workers:
    """`slots` environments spread over `workers` processes.

    A request is ("reset", what the environment's reset takes by name), ("act", actions of shape
    (chunk, action)) or ("render", what its render takes by name), which is answered by an RGB image
    instead of a Reply. The processes end when this one does, however it ends. `kwargs` are those of
    `Task.make`.

    Raises:
        UserError: they cannot be started, or (at a request) one has died.
    """

    def __init__(self, task: Task, slots: int, workers: int, **kwargs: Any):
        self._workers = min(workers, slots)
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        try:
            with worker_start(self._workers):
                for _ in range(self._workers):
                    ours, theirs = context.Pipe()
                    self._pipes.append(ours)
                    with theirs:
                        process = context.Process(
                            target=_serve, args=(theirs, task, kwargs), daemon=True
                        )
                        process.start()
        except BaseException:
            self.__exit__()  # at which those that were started end
            raise

    def request(self, requests: dict[int, tuple[str, Any]]) -> dict[int, Any]:
        """Serve every slot's request, in parallel over the processes."""
        asked = [
            {slot: request for slot, request in requests.items() if slot % self._workers == i}
            for i in range(self._workers)
        ]
        try:
            for pipe, part in zip(self._pipes, asked, strict=True):
                pipe.send(part)
            answers = [pipe.recv() for pipe in self._pipes]
        except (EOFError, OSError):
            raise UserError(
                "an environment process died (out of memory?); try fewer --workers or --slots"
            ) from None
        replies: dict[int, Any] = {}
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            replies |= answer
        return replies

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()


def _serve(pipe: Connection, task: Task, kwargs: dict[str, Any]) -> None:
    follow_parent()
    serve = {"reset": partial(_reset, task), "act": partial(_act, task), "render": _render}
    envs: dict[int, Any] = {}
    while True:
        try:
            requests = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            replies: Any = {}
            for slot, (kind, value) in requests.items():
                if slot not in envs:
                    envs[slot] = task.make(**kwargs)
                replies[slot] = serve[kind](envs[slot], value)
        except Exception as error:
            replies = error
        try:
            pipe.send(replies)
        except OSError:  # the parent has closed the pipe
            return


@contextlib.contextmanager
def _told(task: Task, what: str) -> Iterator[None]:
    """Make a UserError of what an environment raises, which is another's code."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        kind, line = type(error).__name__, first_line(error)
        raise UserError(
            f"the environment of {task.name} raised {kind} in {what}: {line}"
        ) from error


def _seen(task: Task, env: Any, obs: np.ndarray, reward: float = 0.0) -> np.ndarray:
    if obs.shape != env.observation_space.shape:
        raise UserError(
            f"the environment of {task.name} gives observations of shape {obs.shape}, but its "
            f"space says {env.observation_space.shape}; make them the same"
        )
    if not np.isfinite(obs).all() or not np.isfinite(reward):
        raise UserError(f"the environment of {task.name} gives NaN or infinity")
    return obs.astype(np.float32)


def _reset(task: Task, env: Any, kwargs: dict[str, Any]) -> Reply:
    with _told(task, "reset"):
        obs, info = env.reset(**kwargs)
        return Reply(_seen(task, env, obs), goal=info.get("goal"))


def _act(task: Task, env: Any, actions: np.ndarray) -> Reply:
    if actions.shape[1:] != env.action_space.shape:
        raise UserError(
            f"{task.name} takes actions of shape {env.action_space.shape}, the run gives "
            f"{actions.shape[1:]}; it was trained for another environment"
        )
    total, solved = 0.0, []
    with _told(task, "step"):
        for length, action in enumerate(actions, 1):  # noqa: B007
            obs, reward, terminated, truncated, info = env.step(action)
            total += float(reward)
            solved.append(task.success(info))
            if terminated or truncated:
                break
    done = bool(terminated or truncated)
    success = None if solved[-1] is None else any(solved)
    return Reply(_seen(task, env, obs, total), total, length, done, success)


def _render(env: Any, kwargs: dict[str, Any]) -> np.ndarray:
    return env.unwrapped.render(**kwargs)
