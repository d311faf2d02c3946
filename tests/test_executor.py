"""Jobs: in order, side by side, with one thread; what goes wrong in them, and what then happens."""

import dataclasses
import filecmp
import functools
import os
from pathlib import Path

import jobs
import pytest
from conftest import TINY

from qgf.cli import main
from qgf.comparison import Plan, train_all
from qgf.errors import UserError
from qgf.executor import Executor, Job, Processes, Ray, _outcome, execute, for_training
from qgf.tasks.ogbench.collect import collect

partial = functools.partial


def job(name, work, *args, needs=(), memory=0):
    return Job(name, partial(work, *args), 1, lambda: 0, needs, memory)


def test_each_job_comes_after_those_it_needs(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    chain = [
        job("c", jobs.copy, b, c, needs=["b"]),
        job("b", jobs.copy, a, b, needs=["a", "made before"]),
        job("a", jobs.copy, None, a),
    ]
    execute(chain, Processes(3), "files")
    assert c.read_text() == "a b c "


def test_jobs_run_side_by_side_with_one_thread_each(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    before = dict(os.environ)
    execute([job("a", jobs.meet, a, b), job("b", jobs.meet, b, a)], Processes(2), "files")
    execute([job("a", jobs.environment, a)], Processes(1), "files")
    pid, *threads = a.read_text().split()
    assert int(pid) != os.getpid() and threads == ["1", "1"]
    assert os.environ == before


def test_only_what_fits_into_memory_runs_side_by_side():
    executor = Processes(3)
    executor._free = 10e9
    some = [Job(str(size), print, 1, int, memory=int(size * 1e9)) for size in (4, 5, 8)]
    assert executor.fits(some[1], some[:1]) and not executor.fits(some[2], some[:1])
    assert not executor.fits(some[0], some[:1] * 3)  # as many as there are processors
    assert executor.fits(Job("20", print, 1, int, memory=int(20e9)), [])  # or it never would run


@pytest.mark.parametrize(
    "work, kind, message",
    [
        (jobs.refuse, UserError, r"^x: no such data; name others$"),
        (jobs.die, UserError, "^the process of x died .*same command goes on"),
        (jobs.fail, RuntimeError, "(?s)^x:\nTraceback .*ZeroDivisionError: a fault of ours"),
    ],
)
def test_what_goes_wrong_is_told(work, kind, message):
    with pytest.raises(kind, match=message):
        execute([job("x", work), job("y", print, needs=["x"])], Processes(2), "files")


def test_the_others_save_what_they_have_when_one_goes_wrong(tmp_path):
    started, stopped = tmp_path / "started", tmp_path / "stopped"
    pair = [job("x", jobs.refuse_after, started), job("y", jobs.wait, started, stopped)]
    with pytest.raises(UserError, match="x: no such data"):
        execute(pair, Processes(2), "files")
    assert stopped.exists()


class Deadly:
    """Another executor, whose first job is killed as soon as it has made a file."""

    def __init__(self, inner: Executor, seen: Path, tried: Path):
        self.inner, self.files, self.count = inner, [seen, tried], inner.count
        self.fits, self.wait, self.stop = inner.fits, inner.wait, inner.stop

    def start(self, job):
        if self.files:
            job = dataclasses.replace(job, work=partial(jobs.die_amid, job.work, *self.files))
            self.files = []
        self.inner.start(job)


def plan(out: Path, data: Path) -> Plan:
    counts = {"tune": 1, "test": 1}
    return Plan(out, {"cube-single-play-v0": data}, TINY, (0,), counts)


ENVS = [f"cube-single-play-singletask-task{i}-v0" for i in (1, 2)]


def folders(out: Path) -> list[Path]:
    return sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())


@pytest.mark.slow
def test_trainings_side_by_side_are_those_one_after_the_other(data, tmp_path):
    out = tmp_path / "both", tmp_path / "one"
    for folder, count in zip(out, (2, 1), strict=True):
        train_all(plan(folder, data), ["qgf", "cfgrl"], ENVS[:1], Processes(count))
    arrays = [path for path in folders(out[0]) if path.suffix == ".safetensors"]
    assert {str(path).split("/checkpoints")[0] for path in arrays} >= {
        "runs/cube-single-play/policy",
        "runs/cube-single-play/task1/critic",
        "runs/cube-single-play/task1/cfgrl",
    }
    assert folders(out[0]) == folders(out[1])
    assert filecmp.cmpfiles(*out, arrays, shallow=False)[1:] == ([], [])
    # What is there is not made again.
    train_all(plan(out[0], data), ["qgf", "cfgrl"], ENVS[:1], for_training("processes", 1, None))
    assert folders(out[0]) == folders(out[1])


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of a Ray cluster on this machine."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    ray.shutdown()
    nodes.shutdown()


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_bytes(cluster, data, tmp_path):
    local, far = tmp_path / "local", tmp_path / "far"
    train_all(plan(local, data), ["qgf"], ENVS[:1], Processes(2))
    train_all(plan(far, data), ["qgf"], ENVS[:1], Ray(cluster))
    arrays = [path for path in folders(local) if path.suffix == ".safetensors"]
    assert folders(far) == folders(local) and len(arrays) >= 9
    assert filecmp.cmpfiles(local, far, arrays, shallow=False)[1:] == ([], [])


@pytest.mark.slow
def test_ray_starts_again_what_a_killed_worker_did(cluster, tmp_path):
    path = tmp_path / "a"
    executor = Ray(cluster)
    execute([job("a", jobs.die_once, path)], executor, "files")
    assert path.read_text() == "done"
    with pytest.raises(UserError, match=r"^x: no such data"):
        execute([job("x", jobs.refuse)], executor, "files")


NAME = "cube-single-play-v0"
gather = partial(collect, NAME, episodes=4, val_episodes=1, shard_episodes=4, seed=3, steps=60)


@pytest.fixture(scope="module")
def gathered(tmp_path_factory):
    """A collection made in this process."""
    return contents(gather(out=tmp_path_factory.mktemp("gathered"), executor=None).folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_collection_whose_process_is_killed_goes_on_with_the_same_bytes(gathered, tmp_path):
    out, tried = tmp_path / "data", tmp_path / "tried"
    seen = out / "episodes" / NAME / "0.npz"
    with pytest.raises(UserError, match=r"npz, episodes 0 to 1 died .*same command goes on"):
        gather(out=out, executor=Deadly(Processes(2), seen, tried))
    assert seen.exists() and not (out / f"{NAME}.npz").exists()
    gather(out=out, executor=Processes(2))
    assert contents(out) == gathered


@pytest.mark.slow
def test_a_ray_cluster_collects_the_same_bytes_though_a_worker_is_killed(
    cluster, gathered, tmp_path
):
    out, tried = tmp_path / "data", tmp_path / "tried"
    seen = out / "episodes" / NAME / "0.npz"
    gather(out=out, executor=Deadly(Ray(cluster), seen, tried))
    assert tried.exists() and contents(out) == gathered


@pytest.mark.slow
def test_jobs_on_a_cluster_run_in_the_folder_of_the_command(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execute([job("a", jobs.copy, None, Path("a"))], Ray(cluster), "files")
    assert (tmp_path / "a").read_text() == "a "
    kind, text = _outcome(print, "/no such folder")
    assert kind == "user" and "cannot enter /no such folder on" in text


@pytest.mark.parametrize(
    "options, message",
    [
        ("--address a:1", "use --executor ray with it"),
        ("--jobs -1", "--jobs must be at least 0, got -1"),
        ("--executor ray --jobs 2", "--jobs has no effect on a Ray cluster"),
        ("--executor ray --address nowhere", "no Ray cluster at nowhere"),
    ],
)
def test_an_executor_that_cannot_be(options, message, data, tmp_path, capsys):
    argv = ["compare", "--out", tmp_path / "out", "--envs", ENVS[0], "--data", data]
    with pytest.raises(SystemExit) as stop:
        main([*map(str, argv), *options.split()])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_not_there_is_one_line(data, tmp_path, capsys):
    argv = ["compare", "--out", tmp_path / "out", "--envs", ENVS[0], "--data", data]
    argv += ["--executor", "ray", "--address", "127.0.0.1:1"]
    with pytest.raises(SystemExit) as stop:
        main([*map(str, argv)])
    assert stop.value.code == 2
    assert "no Ray cluster at 127.0.0.1:1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
