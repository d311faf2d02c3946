"""Jobs with named outputs, each made once: side by side in processes, or on a Ray cluster.

A job writes files and goes on where it was stopped, so nothing but those files passes between jobs.
Each computes with one thread: then its numbers do not depend on what runs beside it.
"""

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from rich.progress import Progress

from qgf._processes import ONE_THREAD, check_workers, follow_parent, worker_start
from qgf._progress import progress
from qgf.errors import UserError, first_line

POLL = 0.5  # seconds between two looks at how far jobs are
SHOWN = 16  # jobs whose progress is looked at; those beyond fill no screen, but cost time


@dataclass(frozen=True)
class Job:
    """A piece of work that another process can do.

    Attributes:
        name: what progress and errors call it; no two of those run together have the same.
        work: called without arguments; a function that can be imported, with `functools.partial`.
        total: how many units it takes; 0 if what it does is not counted.
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
    """What runs jobs, `count` at a time.

    `wait` gives (name, None) of one that ended, or (name, what went wrong).
    """

    count: int

    def fits(self, job: Job, running: Collection[Job]) -> bool:
        """Whether a job can be started beside those that run."""
        ...

    def start(self, job: Job) -> None: ...

    def wait(self, seconds: float) -> Mapping[str, BaseException | None]: ...

    def stop(self) -> None:
        """End what runs; each job keeps what it saved."""
        ...


def execute(
    jobs: Sequence[Job],
    executor: Executor | None,
    unit: str,
    ended: Callable[[Job], object] = lambda job: None,
) -> None:
    """Run all jobs, each after those it needs; progress shows all together and some that run.

    Args:
        executor: None runs them one after the other in this process, in the order given.
        unit: what is counted, e.g. "steps".
        ended: called in this process with each job that succeeded, before those that need it start.

    Raises:
        UserError: a job raised it, or a process died; the others are stopped, which saves their
            state.
        RuntimeError: a job failed otherwise; the text is its traceback.
    """
    with progress() as bar, contextlib.ExitStack() as ending:
        bars = _Bars(bar, jobs, unit)
        if executor is not None:
            ending.callback(executor.stop)
        for job in _run_here(jobs) if executor is None else _run(jobs, executor, bars):
            ended(job)
            bars.end(job)


def _run_here(jobs: Sequence[Job]) -> Iterator[Job]:
    for job in jobs:
        job.work()
        yield job


def _run(jobs: Sequence[Job], executor: Executor, bars: "_Bars") -> Iterator[Job]:
    """Run jobs, and yield each that succeeded; those that need it start after that."""
    waiting: dict[str, Job] = {job.name: job for job in jobs}
    running: dict[str, Job] = {}
    while waiting or running:
        unfinished = waiting.keys() | running.keys()
        for job in [*waiting.values()]:
            if unfinished.isdisjoint(job.needs) and executor.fits(job, running.values()):
                running[job.name] = waiting.pop(job.name)
                executor.start(job)
        outcomes = executor.wait(POLL)
        bars.look(running.values())
        for name, error in outcomes.items():
            if error is not None:
                raise error
            yield running[name]
            del running[name]


class _Bars:
    """How far all jobs are together, and some of those that run."""

    def __init__(self, bar: Progress, jobs: Sequence[Job], unit: str):
        self._bar, self._unit, self._ended = bar, unit, 0
        total = sum(job.total for job in jobs)
        self._all = bar.add_task(f"{len(jobs)} jobs", total=total, unit=unit)
        self._tasks: dict[str, Any] = {}

    def look(self, running: Collection[Job]) -> None:
        if self._bar.disable:
            return
        done = 0
        for job in itertools.islice((job for job in running if job.total), SHOWN):
            if job.name not in self._tasks:
                task = self._bar.add_task(job.name, total=job.total, unit=self._unit)
                self._tasks[job.name] = task
            here = job.done()
            self._bar.update(self._tasks[job.name], completed=here)
            done += here
        self._bar.update(self._all, completed=self._ended + done)

    def end(self, job: Job) -> None:
        self._ended += job.total
        self._bar.update(self._all, completed=self._ended)
        if job.name in self._tasks:
            self._bar.remove_task(self._tasks.pop(job.name))


class Processes:
    """Jobs in processes of this machine, as many as processors and memory allow."""

    def __init__(self, count: int | None = None):
        """Let at most `count` run at a time; by default one per processor.

        Raises:
            UserError: they are far more than there are processors.
        """
        self.count = len(os.sched_getaffinity(0)) if count is None else count
        check_workers(self.count)
        self._free = _available_memory()
        self._running: dict[str, tuple[Any, Any]] = {}

    def fits(self, job: Job, running: Collection[Job]) -> bool:
        if len(running) >= self.count:
            return False
        needed = job.memory + sum(other.memory for other in running)
        return not running or needed <= self._free

    def start(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        with worker_start(1):
            ours, theirs = context.Pipe(duplex=False)
            with theirs:
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
        self.count = self._processors()

    def _processors(self) -> int:
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def fits(self, job: Job, running: Collection[Job]) -> bool:
        # Ray keeps in line what must wait; a line of any length would only slow it down.
        return len(running) < 2 * self.count

    def start(self, job: Job) -> None:
        options = {"memory": job.memory, "runtime_env": {"env_vars": ONE_THREAD}}
        reference = self._remote.options(**options).remote(job.work, os.getcwd())
        self._running[reference] = job.name

    def wait(self, seconds: float) -> Mapping[str, BaseException | None]:
        self.count = self._processors()  # machines come and go
        ready, _ = self._ray.wait([*self._running], timeout=seconds)
        if ready:  # perhaps not alone
            ready, _ = self._ray.wait([*self._running], num_returns=len(self._running), timeout=0)
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


def for_training(executor: str, jobs: int | None, address: str | None) -> Executor | None:
    """Return what runs trainings, by a name of EXECUTORS, --jobs and --address.

    None, for one after the other in this process, is what 0 asks for, and by default what a GPU
    needs, as one process takes all of its memory.
    """
    import jax  # late: worker processes of environments do without

    alone = (0,) if jax.default_backend() == "cpu" else (0, None)
    return EXECUTORS[executor](jobs, address, "--jobs", alone)


def for_collecting(executor: str, workers: int | None, address: str | None) -> Executor | None:
    """Return what runs a collection, by a name of EXECUTORS, --workers and --address.

    None, for all in this process, is what 1 asks for.
    """
    return EXECUTORS[executor](workers, address, "--workers", (1,))


def _processes(
    count: int | None, address: str | None, option: str, alone: Sequence[int | None]
) -> Processes | None:
    if address is not None:
        raise UserError("--address is that of a Ray cluster; use --executor ray with it")
    if count is not None and count < alone[0]:
        raise UserError(f"{option} must be at least {alone[0]}, got {count}")
    return None if count in alone else Processes(count)


def _ray(
    count: int | None, address: str | None, option: str, alone: Sequence[int | None]
) -> Executor:
    if count is not None:
        raise UserError(f"{option} has no effect on a Ray cluster, which knows its processors")
    return Ray(address)


Maker = Callable[[int | None, str | None, str, Sequence[int | None]], Executor | None]
EXECUTORS: dict[str, Maker] = {"processes": _processes, "ray": _ray}
"""by name: what makes one of a number of jobs, an address, the name of the option that gives the
number, and the numbers (the least first) for which this process does all itself"""


def _child(pipe: Any, work: Callable[[], object]) -> None:
    """Do a job in a process of its own, and tell how it ended."""
    follow_parent()
    quiet = open(os.devnull, "w")  # noqa: SIM115
    sys.stdout = sys.stderr = quiet  # the parent tells what runs
    pipe.send(_outcome(work))


def _outcome(work: Callable[[], object], folder: str | None = None) -> tuple[str, str] | None:
    """Do a job, in a folder; return the kind and text of what went wrong, None if nothing did."""
    try:
        if folder is not None:
            _enter(folder)
        work()
    except UserError as error:
        return "user", str(error)
    except Exception:
        return "other", traceback.format_exc()
    return None


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"cannot enter {folder} on {socket.gethostname()} ({error.strerror}); run the command "
            "in a folder that all machines see"
        ) from None


def _received(name: str, pipe: Any) -> BaseException | None:
    with pipe:
        try:
            return _error(name, pipe.recv())
        except EOFError:
            return UserError(
                f"the process of {name} died (out of memory?); the same command goes on where it "
                "was, and takes less memory with fewer side by side"
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
