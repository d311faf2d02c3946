"""Training: what must not change a number, and what must not be lost."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import TASK, TINY

import qgf.run.trainer
from qgf.config import Spec
from qgf.data.dataset import Dataset
from qgf.errors import Terminated, UserError
from qgf.files import locked, read_record, write_json, write_record
from qgf.run._update import Fixed, create_state, train_steps, validation_losses
from qgf.run.checkpoint import list_checkpoints, load_learner
from qgf.run.trainer import TrainingInterrupted, train
from qgf.tasks import find_task

NO_TASK = "cube-single-play-v0"


def config(**change):
    return dataclasses.replace(TINY, **change)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def arrays(run, name, seed=0, step=40):
    """One learner's arrays of one seed."""
    path = run / "checkpoints" / f"{step:08d}" / f"{name}.safetensors"
    path = path if path.exists() else run / f"{name}.safetensors"
    return {k: v[seed] for k, v in safetensors.numpy.load_file(path).items()}


def assert_close(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=tolerance, err_msg=name)


def lines(run, split="train"):
    return [
        line
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if line["split"] == split
    ]


KILL = """
import os, signal, sys
from pathlib import Path
import qgf.run.checkpoint, qgf.run.trainer
from qgf.config import Config

real, moment = getattr({module}, {function!r}), {moment}

def deadly(*arguments):
    if moment(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

setattr({module}, {function!r}, deadly)
qgf.run.trainer.train({env!r}, Path({data!r}), Path({out!r}), {config!r}, seeds=(3, 5))
"""


@pytest.mark.bit_exact
@pytest.mark.parametrize(
    "module, function, moment",
    [
        ("qgf.run.trainer", "train_steps", "lambda fixed, state, step, count: step == 30"),
        (
            "qgf.run.checkpoint",
            "save_arrays",
            "lambda path, tree: path.stem == 'optimizer' and [*path.parents[1].glob('0*')]",
        ),
    ],
)
def test_resumed_after_kill_9_equals_uninterrupted(module, function, moment, run, data, tmp_path):
    script = KILL.format(
        module=module,
        function=function,
        moment=moment,
        env=TASK,
        data=str(data),
        out=str(tmp_path / "run"),
        config=TINY,
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert list_checkpoints(tmp_path / "run") == [20]
    train(TASK, data, tmp_path / "run", TINY, seeds=(3, 5), resume=True)
    assert contents(tmp_path / "run") == contents(run)


@pytest.mark.bit_exact
@pytest.mark.parametrize("resume", [False, True])
def test_killed_before_the_first_checkpoint_starts_anew(resume, run, data, tmp_path):
    """Also with other settings: what came to nothing binds nobody."""
    out = tmp_path / "run"
    (out / "checkpoints" / ".qgf-abc").mkdir(parents=True)
    (out / "tensorboard").mkdir()
    write_record(out / "config.json", read_record(run / "config.json") | {"seeds": [4]})
    (out / "metrics.jsonl").write_text('{"step": 10, "split": "train"}\n{"step": 1')
    for name in ("fql.safetensors", ".qgf-1", ".lock"):
        (out / name).write_text("x")
    aged(out)
    train(TASK, data, out, TINY, seeds=(3, 5), resume=resume)
    assert contents(out) == contents(run)
    assert not (out / "tensorboard").exists()


def aged(folder):
    """Let all in a folder be a minute old: what is new may be in use."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 60,) * 2)


def test_killed_before_anything_was_written_starts_anew(run, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".qgf-1").write_text("{")
    aged(tmp_path)
    train(TASK, data, tmp_path / "run", TINY, seeds=(3, 5))
    assert contents(tmp_path / "run") == contents(run)


def test_another_programs_configuration_is_left_alone(data, tmp_path):
    (tmp_path / "config.json").write_text('{"name": "a project of another kind"}')
    with pytest.raises(UserError, match=r"config.json has no 'env'"):
        train(TASK, data, tmp_path, TINY)
    assert contents(tmp_path).keys() == {Path("config.json")}


def test_resuming_clears_away_what_a_kill_left(run, data, tmp_path):
    out = shutil.copytree(run, tmp_path / "run")
    shutil.copytree(out / "checkpoints" / "00000020", out / "checkpoints" / "00000010")
    (out / "checkpoints" / ".qgf-half").mkdir()
    (out / ".qgf-half").write_text("{")
    aged(out)
    train(TASK, data, out, TINY, seeds=(3, 5), resume=True)
    assert contents(out) == contents(run)
    assert not (out / "checkpoints" / ".qgf-half").exists()


def test_a_second_training_into_the_same_folder_is_refused(data, tmp_path):
    with locked(tmp_path / "run"):
        before = contents(tmp_path / "run")
        with pytest.raises(
            UserError, match=rf"is already in use by process {os.getpid()} on .* since"
        ):
            train(TASK, data, tmp_path / "run", TINY)
        assert contents(tmp_path / "run") == before


def test_a_damaged_checkpoint_is_not_resumed(run, data, tmp_path):
    out = shutil.copytree(run, tmp_path / "run")
    path = out / "checkpoints" / "00000040" / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    before = contents(out)
    with pytest.raises(UserError, match=r"optimizer.safetensors is damaged"):
        train(TASK, data, out, config(steps=60), seeds=(3, 5), resume=True)
    assert contents(out).keys() == before.keys()


def test_an_older_run_without_a_newer_setting_is_resumed(run, data, tmp_path):
    out = shutil.copytree(run, tmp_path / "run")
    record = read_record(out / "config.json")
    del record["config"]["hyper"]["iql"]["expectile"]
    write_json(out / "config.json", record)
    for path in out.glob("checkpoints/*/state.json"):
        write_json(path, {"step": read_record(path)["step"], "validation_loss": 1.0})
    shutil.rmtree(out / "checkpoints" / "00000040")
    train(TASK, data, out, TINY, seeds=(3, 5), resume=True)
    assert contents(out)[Path("config.json")] == contents(run)[Path("config.json")]
    for name in ("policy", "critic"):
        assert_close(arrays(out, name), arrays(run, name), 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [10, 30])
def test_a_signal_is_noted_until_the_step_is_saved(number, at, run, data, tmp_path, monkeypatch):
    """Also in the last steps: it stops what would come after the training."""

    def interrupted(fixed, state, step, count):
        if int(step) == at:
            os.kill(os.getpid(), number)
        return train_steps(fixed, state, step, count)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(qgf.run.trainer, "train_steps", interrupted)
    kind = {signal.SIGINT: TrainingInterrupted, signal.SIGTERM: Terminated}[number]
    with pytest.raises(kind, match=f"step {at + 10} is saved"):
        train(TASK, data, tmp_path / "run", TINY, seeds=(3, 5))
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    monkeypatch.undo()
    train(TASK, data, tmp_path / "run", TINY, seeds=(3, 5), resume=True)
    for name in ("policy", "critic"):
        assert_close(arrays(tmp_path / "run", name), arrays(run, name), 1e-6)


@pytest.mark.bit_exact
def test_windows_of_the_log_do_not_depend_on_an_interruption(data, tmp_path):
    odd = config(steps=60, log_every=30, checkpoint_every=20, keep=9)
    train(TASK, data, tmp_path / "whole", odd, seeds=(3, 5))
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for step in (40, 60):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / f"{step:08d}")
    train(TASK, data, tmp_path / "again", odd, seeds=(3, 5), resume=True)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    steps = [line["step"] for line in lines(tmp_path / "whole")]
    assert steps == [20, 20, 30, 30, 40, 40, 60, 60]


@pytest.mark.bit_exact
def test_stopped_at_every_step_equals_uninterrupted(data, tmp_path, monkeypatch):
    """The same bytes, log and checkpoints included: a stop is saved between two lines of it."""
    odd = config(steps=60, log_every=30, validate_every=20, checkpoint_every=40)
    train(TASK, data, tmp_path / "whole", odd, seeds=(3, 5))

    def stopped(fixed, state, step, count):
        os.kill(os.getpid(), signal.SIGINT)
        return train_steps(fixed, state, step, count)

    monkeypatch.setattr(qgf.run.trainer, "train_steps", stopped)
    for start in range(0, 60, 10):
        with pytest.raises(TrainingInterrupted, match=f"step {start + 10} is saved"):
            train(TASK, data, tmp_path / "again", odd, seeds=(3, 5), resume=start > 0)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_prolonged_from_an_odd_step_keeps_the_rhythm(run, data, tmp_path):
    out = tmp_path / "run"
    train(TASK, data, out, config(steps=25), seeds=(3, 5))
    train(TASK, data, out, config(steps=40), seeds=(3, 5), resume=True)
    assert [line["step"] for line in lines(out) if line["seed"] == 3] == [10, 20, 25, 30, 40]
    for name in ("policy", "critic"):
        assert_close(arrays(out, name), arrays(run, name), 1e-6)


def test_division_into_dispatches_does_not_matter(run, data, tmp_path):
    # Compiled for another count of steps, sums may be rounded in another order.
    train(TASK, data, tmp_path / "run", config(dispatch_steps=5), seeds=(3, 5))
    for name in ("policy", "critic"):
        for seed in (0, 1):
            assert_close(arrays(tmp_path / "run", name, seed), arrays(run, name, seed), 1e-6)


def test_a_seed_alone_equals_it_among_others(run, data, tmp_path):
    train(TASK, data, tmp_path / "run", TINY, seeds=(5,))
    for name in ("policy", "critic"):
        assert_close(arrays(tmp_path / "run", name), arrays(run, name, seed=1), 1e-5)
    alone = [line["loss"] for line in lines(tmp_path / "run")]
    among = [line["loss"] for line in lines(run) if line["seed"] == 5]
    other = [line["loss"] for line in lines(run) if line["seed"] == 3]
    assert alone == pytest.approx(among, rel=1e-5)
    assert alone != pytest.approx(other, rel=1e-2)


def test_learners_trained_apart_equal_them_side_by_side(run, policy_run, data, tmp_path):
    assert_close(arrays(policy_run, "policy", 1), arrays(run, "policy", 1), 1e-6)
    assert not (policy_run / "checkpoints" / "00000040" / "critic.safetensors").exists()
    train(TASK, data, tmp_path / "critic", TINY, seeds=(3, 5), policy=policy_run)
    assert_close(arrays(tmp_path / "critic", "critic", 1), arrays(run, "critic", 1), 1e-6)


def test_reused_policy_is_the_same_file(run, data, tmp_path):
    source = run / "checkpoints" / "00000040" / "policy.safetensors"
    a, b = tmp_path / "a", tmp_path / "b"
    train(TASK, data, a, config(steps=20), seeds=(3, 5), policy=run)
    assert (a / "policy.safetensors").read_bytes() == source.read_bytes()
    assert not list(a.glob("checkpoints/*/policy.safetensors"))
    # A borrowed policy can be borrowed again, by other seeds, and the run resumed.
    train(TASK, data, b, config(steps=20), seeds=(5, 3), policy=a)
    train(TASK, data, b, config(steps=40), seeds=(5, 3), policy=a, resume=True)
    assert_close(arrays(b, "policy", 0), arrays(run, "policy", 1), 0)
    assert_close(arrays(b, "critic", 0), arrays(run, "critic", 1), 1e-6)
    assert load_learner(b, "policy").config == TINY
    # It is known by its arrays, wherever its run lies now.
    train(TASK, data, b, config(steps=50), seeds=(5, 3), policy=run, resume=True)
    train(NO_TASK, data, tmp_path / "c", config(steps=10), seeds=(3, 5))
    with pytest.raises(UserError, match=r"policy was that of .*run, now that of .*c; resume with"):
        train(TASK, data, b, config(steps=60), seeds=(5, 3), policy=tmp_path / "c", resume=True)
    with pytest.raises(UserError, match=r"learners was .*, now .*; resume with the old one"):
        train(TASK, data, b, config(steps=60), seeds=(5, 3), resume=True)


@pytest.mark.parametrize(
    "change, seeds, env, message",
    [
        ({"chunk": 4}, (3,), TASK, "has chunk 5, this run 4"),
        ({}, (4,), TASK, r"no policy of seed 4; it has \[3, 5\]"),
        ({}, (3,), NO_TASK, "nothing is left to train .* name a task"),
    ],
)
def test_unfit_policy_leaves_nothing_behind(change, seeds, env, message, run, data, tmp_path):
    with pytest.raises(UserError, match=message):
        train(env, data, tmp_path / "x", config(**change), seeds=seeds, policy=run)
    assert not (tmp_path / "x").exists()


def test_diverging_loss_stops_before_anything_bad_is_saved(data, tmp_path):
    with pytest.raises(UserError, match=r"of seed 0 is no longer finite before step 10; there is"):
        train(NO_TASK, data, tmp_path / "run", config(learning_rate=1e30))
    assert not list_checkpoints(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


@pytest.mark.bit_exact
def test_last_good_checkpoint_survives_a_divergence(run, data, tmp_path, monkeypatch):
    def diverging(fixed, state, step, count):
        bad = int(step) == 30
        state, metrics = train_steps(fixed, state, step, count)
        return state, {k: v * np.array([1, np.nan if bad else 1]) for k, v in metrics.items()}

    monkeypatch.setattr(qgf.run.trainer, "train_steps", diverging)
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"of seed 5 .* before step 40; the checkpoint of step 20"):
        train(TASK, data, out, TINY, seeds=(3, 5))
    monkeypatch.undo()
    train(TASK, data, out, TINY, seeds=(3, 5), resume=True)
    assert contents(out) == contents(run)


def test_a_validation_loss_that_is_not_finite_is_not_saved(data, tmp_path, monkeypatch):
    def infinite(*arguments):
        return {k: v * np.inf for k, v in validation_losses(*arguments).items()}

    monkeypatch.setattr(qgf.run.trainer, "validation_losses", infinite)
    with pytest.raises(UserError, match="no longer finite before step 20"):
        train(TASK, data, tmp_path / "run", TINY)
    assert not list_checkpoints(tmp_path / "run")


def test_metrics_lines_are_what_the_learners_say(run, data):
    spec = Spec(28, 5, 5)
    dataset = Dataset(find_task(TASK).open(data), chunk=5, discount=TINY.discount)
    validation = jax.device_put(dataset.validation())
    learners = {name: load_learner(run, name) for name in ("policy", "critic")}
    assert learners["policy"].policy.mlp.kernels[0].shape == (2, spec.obs + 25 + 16, 16)
    losses = validation_losses(validation, learners, {}, TINY.batch_size)
    for i, line in enumerate(lines(run, "validation")[-2:]):
        assert (line["step"], line["seed"]) == (40, (3, 5)[i])
        for name, value in losses.items():
            assert line[name] == pytest.approx(float(value[i]), rel=1e-5)


def test_training_learns(run):
    for seed in (3, 5):
        losses = [line["policy/bc_loss"] for line in lines(run) if line["seed"] == seed]
        assert losses[-1] < losses[0]


def test_steps_differ_from_each_other_and_between_seeds(data):
    dataset = Dataset(find_task(NO_TASK).open(data), chunk=5, discount=0.9)
    chunks = jax.device_put(dataset.validation())
    still = config(learning_rate=1e-30)  # the loss then differs by its randomness alone
    seeds = jax.numpy.array([0, 1])
    losses = []
    for step in (0, 1, 0):
        state = create_state({"policy": "bc"}, Spec(28, 5, 5), still, seeds)
        same = jax.tree.map(lambda x: x[:1].repeat(2, 0) if hasattr(x, "shape") else x, state)
        metrics = train_steps(Fixed(chunks, seeds, still), same, jax.numpy.asarray(step), 1)[1]
        losses.append(metrics["loss"].tolist())
    assert losses[0] == losses[2]
    assert len({*losses[0], *losses[1]}) == 4


@pytest.mark.bit_exact
def test_rotation_trains_on_every_shard(run, data, tmp_path):
    rotating = config(resident_gb=1e-9, dispatch_steps=10, rotate_every=10)
    train(TASK, data, tmp_path / "whole", rotating, seeds=(3, 5))
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "00000040")
    train(TASK, data, tmp_path / "again", rotating, seeds=(3, 5), resume=True)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    assert [line["loss"] for line in lines(run)] != [
        line["loss"] for line in lines(tmp_path / "whole")
    ]


def test_full_disk_while_logging(data, tmp_path, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    monkeypatch.setattr(
        qgf.run.trainer, "truncate_metrics", lambda path, step: path.symlink_to("/dev/full")
    )
    with pytest.raises(UserError, match=r"cannot write .*metrics.jsonl: No space left"):
        train(TASK, data, tmp_path / "run", TINY)
