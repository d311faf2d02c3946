"""The command line: a user's mistake is one line and code 2, Ctrl-C one line and code 130."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TASK, TINY

import qgf.commands
from qgf._parsing import parse
from qgf.cli import main
from qgf.config import PRESETS, Config
from qgf.data import Fields
from qgf.errors import OUT_OF_MEMORY, Terminated, UserError
from qgf.run.checkpoint import list_checkpoints
from qgf.run.trainer import train
from qgf.tasks.ogbench.collect import collect

NAME = "cube-single-play-v0"
SMALL = [
    *("--steps", "40", "--batch-size", "8", "--width", "16", "--depth", "2"),
    *("--dispatch-steps", "10", "--log-every", "10", "--validate-every", "20"),
    *("--checkpoint-every", "20", "--rotate-every", "10"),
]


@pytest.fixture
def fails(capsys, tmp_path):
    """Run a command that must fail; return its one line; TMP/out must not come to be."""

    def fails(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in argv])
        printed = capsys.readouterr()
        assert stop.value.code == 2
        assert printed.out == ""
        assert printed.err.startswith("qgf: ") and printed.err.endswith("\n")
        assert printed.err.count("\n") == 1, printed.err
        assert not (tmp_path / "out").exists()
        return printed.err

    return fails


@pytest.fixture
def fails_to_train(fails, tmp_path):
    def fails_to_train(data, *more, env=TASK):
        return fails(
            "train", "--env", env, "--data", data, "--out", tmp_path / "out", *SMALL, *more
        )

    return fails_to_train


@pytest.fixture
def copied(data, tmp_path):
    return shutil.copytree(data, tmp_path / "copy")


def change(folder, edit):
    """Edit a training shard of a folder without a manifest."""
    path = folder / f"{NAME}.npz"
    with np.load(path) as file:
        arrays = dict(file)
    edit(arrays)
    np.savez(path, **arrays)


def test_missing_folder(fails_to_train, tmp_path):
    assert f"no dataset folder {tmp_path / 'none'}" in fails_to_train(tmp_path / "none")


def test_empty_folder(fails_to_train, tmp_path):
    assert "holds no dataset (no .npz files)" in fails_to_train(tmp_path)


def test_shard_with_another_sha256(fails_to_train, copied):
    path = copied / f"{NAME}-001.npz"
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    assert f"{path.name} differs from what manifest.json recorded" in fails_to_train(copied)


def test_truncated_shard(fails_to_train, downloaded):
    path = downloaded / f"{NAME}.npz"
    path.write_bytes(path.read_bytes()[:5000])
    assert f"{path.name} cannot be read" in fails_to_train(downloaded)
    assert not (downloaded / "manifest.json").exists()


def test_data_of_another_environment(fails_to_train, data):
    line = fails_to_train(data, env="scene-play-singletask-task1-v0")
    assert f"are of {NAME}, but scene-play-singletask-task1-v0 needs scene-play-v0" in line


def test_missing_validation_shard(fails_to_train, downloaded):
    (downloaded / f"{NAME}-val.npz").unlink()
    assert f"{NAME}-val.npz is missing" in fails_to_train(downloaded)


def test_nan_in_the_observations(fails_to_train, downloaded):
    change(downloaded, lambda arrays: arrays["observations"].__setitem__((3, 2), np.nan))
    assert "has NaN or infinity in observations, first in row 3;" in fails_to_train(downloaded)


def test_unfit_validation_data(fails_to_train, downloaded):
    """Nothing is written, and the files are not vouched for."""
    path = downloaded / f"{NAME}-val.npz"
    for name, edit, message in (
        ("observations", lambda x: x[:, :27], "observations of shape (101, 27), but the"),
        ("qpos", lambda x: x * np.nan, "has NaN or infinity in qpos, first in row 0;"),
    ):
        with np.load(path) as file:
            arrays = dict(file)
        np.savez(path, **arrays | {name: edit(arrays[name])})
        assert message in fails_to_train(downloaded)
        assert not (downloaded / "manifest.json").exists()
        np.savez(path, **arrays)


def test_action_out_of_range(fails_to_train, downloaded):
    change(downloaded, lambda arrays: arrays["actions"].__setitem__((4, 0), 1.5))
    assert "has an action outside [-1, 1], first in row 4;" in fails_to_train(downloaded)


def test_chunk_longer_than_a_trajectory(fails_to_train, data):
    line = fails_to_train(data, "--chunk", 200)
    assert "no trajectory is as long as a chunk of 200 steps (the longest has 100)" in line


def test_unknown_environment(fails_to_train, data, fails, tmp_path):
    line = fails_to_train(data, env="cube-singel-play-singletask-task1-v0")
    assert f"Did you mean '{TASK}'?" in line
    assert f"Did you mean '{NAME}'?" in fails("collect", "cube-singel-play-v0", "--out", tmp_path)
    assert "Did you mean" in fails_to_train(data, env="cube-single-play-singletask-task9-v0")


def test_unknown_command(fails):
    line = fails("trian", "--env", TASK)
    assert "no command 'trian'. Did you mean 'train'? There are: collect, train, eval" in line


def test_unknown_option(fails_to_train, data):
    line = fails_to_train(data, "--expectil", 0.9)
    assert "--expectil" in line and "--expectile" in line.replace("--expectil ", "")


def test_unknown_choice(fails_to_train, data):
    line = fails_to_train(data, "--aggregation", "max")
    assert "max" in line and "min" in line and "mean" in line
    assert "laptop" in fails_to_train(data, "--preset", "desktop")


def test_missing_option(fails):
    assert "--out" in fails("train", "--env", TASK)
    assert "name --data, and --env" in fails("train", "--out", "x", "--env", TASK)


def test_no_command(fails):
    assert "collect" in fails()


def test_senseless_number(fails_to_train, data):
    assert "learning_rate must be positive, got -1.0" in fails_to_train(data, "--learning-rate", -1)
    assert "width" in fails_to_train(data, "--width", "wide")


@pytest.mark.parametrize("seeds", ["5..3", "1,1", "a", "1,,2", "-1..3", "0..99999999999"])
def test_senseless_seeds(seeds, fails_to_train, data):
    line = fails_to_train(data, f"--seeds={seeds}")
    assert "--seeds must be like 0..9 or 0,3,5" in line and f"got '{seeds}'" in line


def test_seed_out_of_range(fails_to_train, data):
    assert f"[0, 2^31), got {2**40}" in fails_to_train(data, "--seed", 2**40)


def test_negative_weight(fails, run):
    line = fails("eval", run, "--weights", -0.1)
    assert "a guidance weight must be a finite number of at least 0, got -0.1" in line
    assert "got nan" in fails("eval", run, "--weights", 0.1, "nan")
    assert "got 1e+39" in fails("eval", run, "--weights", "1e39")  # infinite in float32


def test_weight_that_is_no_number(fails, run):
    assert "much" in fails("eval", run, "--weights", "much")


def test_evaluation_of_no_run(fails, tmp_path):
    assert "does not exist; train one" in fails("eval", tmp_path / "none")
    assert "holds no run" in fails("eval", tmp_path)
    assert "holds no run" in fails("report", tmp_path)


def test_resume_with_another_configuration(capsys, run, data, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
    arguments = ["train", "--env", TASK, "--data", str(data), "--out", str(copied), *SMALL]
    for more, message in (
        (
            ["--resume", "--seeds=3,5", "--width", "32"],
            "another configuration: width was 16, now 32",
        ),
        (["--resume", "--seeds", "3,4"], "seeds was [3, 5], now [3, 4]"),
        (["--resume", "--seeds=3,5", "--steps", "20"], "already at step 40"),
        (["--seeds=3,5"], "already holds a run; add --resume to continue it"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments + more)
        line = capsys.readouterr().err
        assert stop.value.code == 2 and message in line and line.count("\n") == 1
    assert {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()} == before


def test_resume_of_nothing(fails_to_train, data):
    assert "holds no run to resume; leave --resume out" in fails_to_train(data, "--resume")


def test_folder_of_something_else(capsys, data, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for out, message in (
        (tmp_path, "exists and is no run (it holds thesis.tex); use another --out"),
        (tmp_path / "thesis.tex", "is not a folder; name another"),
    ):
        with pytest.raises(SystemExit):
            main(["train", "--env", TASK, "--data", str(data), "--out", str(out), *SMALL])
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_that_cannot_be_written(capsys, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        main(
            ["train", "--env", TASK, "--data", str(data), "--out", str(tmp_path / "file/x"), *SMALL]
        )
    line = capsys.readouterr().err
    assert stop.value.code == 2 and "Not a directory" in line and line.count("\n") == 1


def test_full_disk(capsys, data, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--env", TASK, "--data", str(data), "--out", str(tmp_path / "out"), *SMALL])
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1
    assert "cannot write" in line and "No space left on device" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("logger, module", [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_logger_that_is_not_installed(logger, module, fails_to_train, data, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    line = fails_to_train(data, "--logger", logger)
    assert f"--logger {logger} needs {module}; install it with pip install 'qgf[{logger}]'" in line


def test_logger_that_does_not_start(fails_to_train, data, monkeypatch):
    """Nothing is written before it has."""

    def init(**options):
        raise ValueError("no account")

    module = SimpleNamespace(init=init, errors=SimpleNamespace(Error=ValueError))
    monkeypatch.setitem(sys.modules, "wandb", module)
    line = fails_to_train(data, "--logger", "wandb")
    assert line == "qgf: --logger wandb: no account; --logger none does without\n"


def test_policy_of_another_shape(fails_to_train, data, run):
    line = fails_to_train(data, "--policy", run, "--chunk", 4, "--seed", 3)
    assert "has chunk 5, this run 4" in line


def parsed(argv):
    return parse(["train", "--env", TASK, "--data", "d", "--out", "o", *argv])


def test_options_reach_the_configuration():
    assert parsed(SMALL).config == TINY
    assert parsed([]).config == Config()
    paper = parsed(["--preset", "paper", "--width", "64"]).config
    assert paper == Config(**{**vars(PRESETS["paper"]), "width": 64})
    assert parsed(["--preset=paper"]).config == PRESETS["paper"]
    assert qgf.commands._parse_seeds("2..4") == [2, 3, 4]
    assert qgf.commands._parse_seeds("7") == [7] and qgf.commands._parse_seeds("5,0") == [5, 0]


def test_train_prints_where(capsys, monkeypatch):
    calls = []
    monkeypatch.setattr("qgf.run.trainer.train", lambda *a, **k: calls.append((a, k)))
    main(["train", "--env", TASK, "--data", "d", "--out", "o", "--seeds", "0..1", *SMALL])
    assert calls == [
        (
            (TASK, Path("d"), Path("o"), TINY),
            {
                "seeds": [0, 1],
                "method": "qgf",
                "critic": None,
                "policy": None,
                "base": None,
                "fields": Fields(),
                "resume": False,
                "logger": "none",
            },
        )
    ]
    assert capsys.readouterr().out == "trained: o\n"


def test_help_is_no_mistake(capsys):
    for argv in (["--help"], ["train", "--help"]):
        main(argv)
        assert "--help" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--weights", "0,0.1"], ["--best_of=4,8"], ["--method", "a,b"]])
def test_commas_between_values(argv, fails, run):
    flag, *values = argv[0].split("=") + argv[1:]
    expected = f"put spaces between the values of {flag}: {flag} {values[0].replace(',', ' ')}"
    assert expected in fails("eval", run, *argv)


def test_a_file_as_data(fails_to_train, data):
    file = data / f"{NAME}-000.npz"
    assert f"{file} is a file; name its folder instead: {data}" in fails_to_train(file)


def test_senseless_paths(fails, fails_to_train, run, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    long = tmp_path / ("x" * 300)
    for path in (long, tmp_path / "loop", "a\0b"):
        assert repr(str(path))[1:-1] in fails_to_train(path)
        assert repr(str(path))[1:-1] in fails("eval", path)
        assert repr(str(path))[1:-1] in fails("report", path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 516800013584 bytes."),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_out_of_memory(error, fails, monkeypatch):
    monkeypatch.setattr(qgf.commands.Report, "__call__", raises(error))
    assert fails("report", "x") == f"qgf: {OUT_OF_MEMORY}\n"


@pytest.mark.parametrize("option", ["--batch-size", "--width"])
def test_more_memory_than_there_is(option, fails_to_train, data):
    line = fails_to_train(data, option, 10**9)
    assert line.startswith(f"qgf: {OUT_OF_MEMORY} (at least ")


def test_other_errors_are_defects(monkeypatch):
    for error in (RuntimeError("wrong"), OSError("wrong"), FileNotFoundError(2, "wrong")):
        monkeypatch.setattr(qgf.commands.Report, "__call__", raises(error))
        with pytest.raises(type(error)):
            main(["report", "x"])


def raises(error):
    def call(self):
        raise error

    return call


@pytest.mark.parametrize("names", ["cuda", "gpu"])
@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize"), AssertionError()])
def test_no_device(names, error, fails_to_train, data, monkeypatch):
    monkeypatch.setattr("jax.devices", lambda: raises(error)(None))
    assert "JAX finds no device for JAX_PLATFORMS=" in fails_to_train(data)


def test_standard_output_that_takes_nothing(capfd, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        for argv in (["methods"], ["methods", "--help"]):  # more, and less, than a buffer holds
            with pytest.raises(SystemExit) as stop:
                main(argv)
            line = capfd.readouterr().err
            assert stop.value.code == 2 and line.count("\n") == 1
            assert line.startswith("qgf: No space left on device (of standard output")


def test_standard_error_that_takes_nothing(capsys, monkeypatch):
    for stream in (open("/dev/full", "w"), None):  # noqa: SIM115
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(SystemExit) as stop:
            main(["trian"])
        assert stop.value.code == 2 and capsys.readouterr().out == ""


def test_reader_that_is_gone(capfd, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as stop:
            main(["methods"])
    assert stop.value.code == 141 and capfd.readouterr().err == ""


def program(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, code="", **environment):
    """Run the program in a process of its own, where `code` comes first."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{code}\nfrom qgf.cli import run; run()", *argv],
        stdout=stdout,
        stderr=stderr,
        env=os.environ | environment,
    )


def test_streams_of_the_program():
    """Closed ones are opened, so that no file takes their place, and any text can be printed."""
    closed = program(
        "methods", code="import os; os.close(0); os.close(2)", PYTHONIOENCODING="ascii"
    )
    out, err = closed.communicate()
    assert closed.returncode == 0 and out.isascii() and b"qgf" in out and err == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_program_starts(number):
    """It comes while a module is imported that swallows it."""
    code = f"""
import os, sys, types
class Swallowing:
    def find_spec(name, *rest):
        if name == "qgf.commands":
            try:
                os.kill(os.getpid(), {int(number)})
            except BaseException:
                pass
sys.meta_path.insert(0, Swallowing)
"""
    process = program("methods", code=code)
    out, err = process.communicate()
    assert process.returncode == 128 + number
    assert (out, err) == (b"", b"interrupted; the same command starts again\n")


def test_a_signal_that_nothing_can_raise():
    code = """
import os, signal, qgf.commands
class Fading:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
qgf.commands.Methods.__call__ = lambda self: Fading() and None
"""
    process = program("methods", code=code)
    assert process.communicate() == (b"", b"interrupted; the same command starts again\n")
    assert process.returncode == 130


def test_sigterm(capsys, monkeypatch):
    monkeypatch.setattr(qgf.commands.Report, "__call__", raises(Terminated()))
    with pytest.raises(SystemExit) as ended:
        main(["report", "x"])
    assert ended.value.code == 143
    assert capsys.readouterr().err == "interrupted; the same command starts again\n"


def interrupt(argv, started, printed="", code=""):
    """Press Ctrl-C, which reaches every process of a terminal, once `started()` holds."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nfrom qgf.cli import run; run()", *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while not started(process.pid):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == printed and err.startswith("interrupted") and err.count("\n") == 1, err
    return err


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_ctrl_c_in_training(run, data, tmp_path):
    argv = ["train", "--env", TASK, "--data", data, "--out", tmp_path / "run", "--seeds=3,5"]
    metrics = tmp_path / "run" / "metrics.jsonl"
    line = interrupt(
        [*argv, *SMALL, "--steps", 10**7, "--checkpoint-every", 10**6],
        lambda pid: metrics.exists() and metrics.stat().st_size > 0,
        "rewards: those of cube-single-singletask-task1-v0, computed from the recorded states\n",
    )
    (step,) = list_checkpoints(tmp_path / "run")
    assert line == f"interrupted: step {step} is saved; add --resume to continue\n"
    assert step % 10 == 0
    steps = ["--steps", str(step + 10), "--checkpoint-every", "1000000"]
    main([*map(str, argv), *SMALL, *steps, "--resume"])
    assert list_checkpoints(tmp_path / "run") == [step + 10]  # a stop leaves no trace


def test_ctrl_c_while_the_data_are_read(capsys, data, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    argv = ["train", "--env", TASK, "--data", str(data), "--out", str(tmp_path / "out"), *SMALL]
    for name, message in (
        ("find_task", "the same command starts again"),
        ("_loop", "add --resume to continue from the last checkpoint"),
    ):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(f"qgf.run.trainer.{name}", stop)
            main(argv)
        line = capsys.readouterr().err
        assert ended.value.code == 130 and message in line and line.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("delay", [0.0, 3.0])
def test_ctrl_c_in_evaluation(delay, run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")

    def started(pid):
        if len(children(pid)) < 3:  # the two environments' and Python's own helper
            return False
        time.sleep(delay)
        return True

    argv = ["eval", copied, "--weights", "0.1", "--workers", "2"]
    line = interrupt([*argv, "--episodes", "100"], started)
    assert line == "interrupted; the same command starts again\n"
    assert not (copied / "eval.json").exists()
    main([*map(str, argv), "--episodes", "1", "--slots", "8"])
    assert (copied / "eval.json").exists()


SHARDS = ("--episodes", "2", "--shard-episodes", "1", "--val-episodes", "2")


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """Shards of short episodes, collected at one go; read-only."""
    folder = tmp_path_factory.mktemp("collected") / "whole"
    collect(NAME, folder, 2, 2, 1, None, 0, 301)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("written", ["manifest.json", f"{NAME}-000.npz"])
def test_ctrl_c_in_collection(written, collected, tmp_path, monkeypatch):
    """While the workers start, and while they play."""
    argv = ["collect", NAME, "--out", tmp_path / "data", *SHARDS]
    short = "import qgf.tasks.ogbench.collect as data; data.collect.__defaults__ = (301,)"
    interrupt(argv, lambda pid: (tmp_path / "data" / written).exists(), code=short)
    assert not (tmp_path / "data" / f"{NAME}-001-val.npz").exists()
    monkeypatch.setattr("qgf.tasks.ogbench.collect.collect", functools.partial(collect, steps=301))
    main([*map(str, argv), "--workers", "1"])
    ours, theirs = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (tmp_path / "data", collected)
    )
    assert ours == theirs


def test_ctrl_c_anywhere_else(capsys, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(qgf.commands.Report, "__call__", stop)
    monkeypatch.setattr(qgf.commands.Demo, "__call__", stop)
    for argv in (["report", "x"], ["demo"]):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 130
        assert capsys.readouterr().err == "interrupted; the same command starts again\n"


def test_train_function_complains_the_same_way(data, tmp_path):
    with pytest.raises(UserError, match="no dataset folder"):
        train(TASK, tmp_path / "none", tmp_path / "out", TINY)
