"""Jobs with named outputs, each made once: side by side in processes, or on a Ray cluster.

A job writes files and goes on where it was stopped, so nothing but those files passes between jobs.
Each computes with one thread: then its numbers do not depend on what runs beside it.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from qgf._processes import ONE_THREAD, follow_parent, worker_start
from qgf._progress import progress
from qgf.errors import UserError, first_line

POLL = 0.5  # seconds between two looks at how far jobs are


@dataclass(frozen=True)
class Job:
    """A piece of work that another process can do.

    Attributes:
        name: what progress and errors call it; no two of those run together have the same.
        work: called without arguments; a function that can be imported, with `functools.partial`.
        total: how many units it takes.
        done: how many of them are made, told by its files; called in this process.
        needs: names of jobs that come before it; those not given are taken to be done.
        memory: bytes it takes.
    """

    name: str
    work: Callable[[], object]
    total: int
    done: Callable[[], int]
    needs: Sequence[str] = ()
    memory: int = 0


@runtime_checkable
class Executor(Protocol):
    """What runs jobs. `wait` gives (name, None) of one that ended, or (name, what went wrong)."""

    def fits(self, job: Job, running: Sequence[Job]) -> bool:
        """Whether a job can be started beside those that run."""
        ...

    def start(self, job: Job) -> None: ...

    def wait(self, seconds: float) -> Mapping[str, BaseException | None]: ...

    def stop(self) -> None:
        """End what runs; each job keeps what it saved."""
        ...


def execute(jobs: Sequence[Job], executor: Executor, unit: str) -> None:
    """Run all jobs, each after those it needs; progress shows all that run.

    Args:
        unit: what is counted, e.g. "steps".

    Raises:
        UserError: a job raised it, or a process died; the others are stopped, which saves their
            state.
        RuntimeError: a job failed otherwise; the text is its traceback.
    """
    waiting, running = {job.name: job for job in jobs}, {}
    with progress() as bar, contextlib.ExitStack() as ending:
        ending.callback(executor.stop)
        bars = {}
        while waiting or running:
            for job in [*waiting.values()]:
                ready = not {*job.needs} & (waiting.keys() | running.keys())
                if ready and executor.fits(job, [*running.values()]):
                    running[job.name] = waiting.pop(job.name)
                    bars[job.name] = bar.add_task(job.name, total=job.total, unit=unit)
                    executor.start(job)
            ended = executor.wait(POLL)
            if not bar.disable:
                for name, job in running.items():
                    bar.update(bars[name], completed=job.done())
            for name, error in ended.items():
                if error is not None:
                    raise error
                bar.update(bars[name], visible=False)
                del running[name]


class Processes:
    """Jobs in processes of this machine, as many as processors and memory allow."""

    def __init__(self, count: int | None = None):
        """Let at most `count` run at a time; by default one per processor."""
        self._count = count or len(os.sched_getaffinity(0))
        self._free = _available_memory()
        self._running: dict[str, tuple[Any, Any]] = {}

    def fits(self, job: Job, running: Sequence[Job]) -> bool:
        needed = job.memory + sum(other.memory for other in running)
        return not running or (len(running) < self._count and needed <= self._free)

    def start(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        with theirs, worker_start(1):
            process = context.Process(target=_child, args=(theirs, job.work))
            process.start()
        self._running[job.name] = process, ours

    def wait(self, seconds: float) -> Mapping[str, BaseException | None]:
        pipes = [pipe for _, pipe in self._running.values()]
        ready = multiprocessing.connection.wait(pipes, seconds)
        ended = {}
        for name, (process, pipe) in [*self._running.items()]:
            if pipe in ready:
                ended[name] = _received(name, pipe)
                process.join()
                del self._running[name]
        return ended

    def stop(self) -> None:
        for process, _ in self._running.values():
            process.terminate()  # at which a training saves its state
        for process, pipe in self._running.values():
            process.join()
            pipe.close()
        self._running.clear()


class Ray:
    """Jobs on the machines of a Ray cluster, which see the same folders under the same names."""

    def __init__(self, address: str | None = None):
        """Connect to a cluster; without an address, to one started on this machine.

        Raises:
            UserError: Ray is not installed, or there is no such cluster.
        """
        import ray

        self._ray, self._running = ray, {}
        try:
            if address not in (None, "auto"):  # Ray itself would try for minutes
                host, _, port = address.rpartition("//")[2].rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"no Ray cluster at {address}: {first_line(error)}; start one with `ray start "
                "--head`, and name it as HOST:PORT or auto"
            ) from None
        # A worker process serves one job alone, as those of `Processes` do.
        self._remote = ray.remote(num_cpus=1, max_retries=3, max_calls=1)(_outcome)

    def fits(self, job: Job, running: Sequence[Job]) -> bool:
        return True  # Ray keeps what does not fit in line

    def start(self, job: Job) -> None:
        options = {"memory": job.memory, "runtime_env": {"env_vars": ONE_THREAD}}
        self._running[self._remote.options(**options).remote(job.work)] = job.name

    def wait(self, seconds: float) -> Mapping[str, BaseException | None]:
        ready, _ = self._ray.wait([*self._running], timeout=seconds)
        ended = {}
        for reference in ready:
            name = self._running.pop(reference)
            try:
                ended[name] = _error(name, self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                ended[name] = UserError(f"{name}: Ray gave it up: {error}")
        return ended

    def stop(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference)
        self._running.clear()


def local(count: int | None = None) -> Processes | None:
    """Return what runs `count` jobs at a time here.

    Without a number that is one per processor. None, for one after the other in this process, is
    what 0 asks for, and what a GPU needs, as one process takes all of its memory.
    """
    import jax  # late: worker processes of environments do without

    if count is None and jax.default_backend() != "cpu":
        return None
    return None if count == 0 else Processes(count)


def _processes(count: int | None, address: str | None) -> Processes | None:
    if address is not None:
        raise UserError("--address is that of a Ray cluster; use --executor ray with it")
    if count is not None and count < 0:
        raise UserError(f"--jobs must be at least 0, got {count}")
    return local(count)


def _ray(count: int | None, address: str | None) -> Ray:
    if count is not None:
        raise UserError("--jobs has no effect on a Ray cluster, which knows its processors")
    return Ray(address)


EXECUTORS: dict[str, Callable[[int | None, str | None], Executor | None]] = {
    "processes": _processes,
    "ray": _ray,
}
"""by name: what makes one of a number of jobs and an address"""


def _child(pipe: Any, work: Callable[[], object]) -> None:
    """Do a job in a process of its own, and tell how it ended."""
    follow_parent()
    quiet = open(os.devnull, "w")  # noqa: SIM115
    sys.stdout = sys.stderr = quiet  # the parent tells what runs
    pipe.send(_outcome(work))


def _outcome(work: Callable[[], object]) -> tuple[str, str] | None:
    """Do a job; return the kind and text of what went wrong, None if nothing did."""
    try:
        work()
    except UserError as error:
        return "user", str(error)
    except Exception:
        return "other", traceback.format_exc()
    return None


def _received(name: str, pipe: Any) -> BaseException | None:
    with pipe:
        try:
            return _error(name, pipe.recv())
        except EOFError:
            return UserError(
                f"the process of {name} died (out of memory?); the same command goes on where it "
                "was, and takes less memory with a smaller --jobs"
            )


def _error(name: str, outcome: tuple[str, str] | None) -> BaseException | None:
    if outcome is None:
        return None
    kind, text = outcome
    return UserError(f"{name}: {text}") if kind == "user" else RuntimeError(f"{name}:\n{text}")


def _available_memory() -> float:
    """Return bytes that can be taken without swapping, where the system says it (Linux)."""
    with contextlib.suppress(OSError), open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return 1024 * float(line.split()[1])
    return float("inf")
