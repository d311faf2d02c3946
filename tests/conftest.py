"""Annotations are checked by beartype in this process; a tiny dataset and a tiny run."""

import ctypes
import dataclasses
import gc
import importlib.util
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

from jaxtyping import install_import_hook

# Tests compile the same programs again and again, some of them in processes of their own.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="qgf-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    # For processes that run tests: freed memory goes back instead of staying with many threads.
    os.environ["MALLOC_ARENA_MAX"] = "2"
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = str(1 << 20)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
# Tiny networks compile for longer than they run; the compiler's fusion emitters alone double that.
# What equals to the last bit in programs that are not optimized need not do so in those that are,
# so `make test` runs tests marked bit_exact apart.
if "QGF_TESTS_OPTIMIZED" not in os.environ:
    quick = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}"

# A background job of a shell ignores Ctrl-C, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# All but the command line, whose parser fills in objects of its own while it parses.
SOURCE = Path(importlib.util.find_spec("qgf").origin).parent
ROOMS = [path.stem for path in SOURCE.iterdir() if path.stem not in ("commands", "__init__")]
install_import_hook(
    ["studies", *(f"qgf.{room}" for room in ROOMS)],
    "beartype.beartype",
)

import shutil  # noqa: E402

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from qgf.config import Config  # noqa: E402
from qgf.run.trainer import train  # noqa: E402
from qgf.tasks.ogbench.collect import _make, collect  # noqa: E402

TASK = "cube-single-play-singletask-task1-v0"
TINY = Config(
    steps=40,
    batch_size=8,
    width=16,
    depth=2,
    dispatch_steps=10,
    log_every=10,
    validate_every=20,
    checkpoint_every=20,
    rotate_every=10,
)


# At most this much memory for a process of the tests, so that two run beside other work.
MEMORY = 2_000_000  # kilobytes
RELEASE = 1_000_000  # beyond which a module drops its programs between tests


def pytest_collection_finish():
    """Tracing makes millions of objects, for which the collector need not visit every module."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Compiled programs are what fills a test process: none outlives its module."""
    before = peak_memory()
    yield
    release_memory(environments=0)
    # The first module that goes beyond it fails; the peak is that of the process until now.
    assert before > MEMORY or peak_memory() <= MEMORY


@pytest.fixture(autouse=True)
def bounded_module():
    """A module that compiles much forgets it in between."""
    yield
    if resident_memory() > RELEASE:
        release_memory()


def release_memory(environments=1):
    """Drop all that was compiled, and give back what is free.

    Without the latter every module adds to the process's size.

    Args:
        environments: so many stay, unless there are more.
    """
    _make.cache_clear()  # it holds an environment, too
    envs = sys.modules.get("qgf.tasks.ogbench._manipspace")
    if envs and envs.FastEnv._prototype.cache_info().currsize > environments:  # of 160 MB each
        envs.FastEnv._prototype.cache_clear()
    eqx.clear_caches()
    jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def train_and_release(*arguments, **options):
    """Train, and drop what was compiled for it."""
    train(*arguments, **options)
    release_memory()


def resident_memory():
    """The memory that this process holds, in kilobytes; 0 where the system does not tell."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return 0
    return int(pages.read_text().split()[1]) * resource.getpagesize() // 1024


def peak_memory():
    """The most memory that this process has held, in kilobytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


PEAKS = []  # of the processes that run tests for this one


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak"] = peak_memory()


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_testnodedown(node):
    if hasattr(node, "workeroutput"):  # it has none where it was killed
        PEAKS.append(node.workeroutput["peak"])


def pytest_terminal_summary(terminalreporter):
    peak = max(PEAKS or [peak_memory()])
    terminalreporter.write_line(f"at most {peak / 1e6:.2f} GB in a process of the tests")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Two shards of two short episodes each; read-only."""
    folder = tmp_path_factory.mktemp("data") / "cube"
    collect("cube-single-play-v0", folder, 4, 2, 2, None, 0, 101)
    return folder


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    """A run of training seeds 3 and 5; read-only."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train_and_release(TASK, data, folder, TINY, seeds=(3, 5))
    return folder


@pytest.fixture(scope="session")
def policy_run(data, tmp_path_factory):
    """A run of the same seeds without a task, so of the policy alone; read-only."""
    folder = tmp_path_factory.mktemp("run") / "policy"
    train_and_release("cube-single-play-v0", data, folder, TINY, seeds=(3, 5))
    return folder


@pytest.fixture(scope="session")
def other_critic(data, policy_run, tmp_path_factory):
    """A run of another critic for the same task and seeds; read-only."""
    folder = tmp_path_factory.mktemp("run") / "critic"
    config = dataclasses.replace(TINY, learning_rate=1e-2)
    train_and_release(TASK, data, folder, config, seeds=(3, 5), policy=policy_run)
    return folder


@pytest.fixture
def downloaded(data, tmp_path):
    """A copy of one shard under OGBench's own names, without a manifest."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for tail in ("", "-val"):
        shutil.copy(
            data / f"cube-single-play-v0-000{tail}.npz", folder / f"cube-single-play-v0{tail}.npz"
        )
    return folder
