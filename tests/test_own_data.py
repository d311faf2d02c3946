"""Training from recorded episodes of any format, without OGBench: the core door."""

import dataclasses
import importlib.metadata
import json

import jax
import numpy as np
import pytest

import qgf
from qgf.cli import main
from qgf.data import Dataset, Fields, from_arrays
from qgf.data.recorded import Recorded
from qgf.errors import UserError
from qgf.run import load_record, validation_batch

TINY = qgf.Config(
    steps=20,
    batch_size=8,
    width=8,
    depth=1,
    chunk=3,
    dispatch_steps=10,
    log_every=10,
    validate_every=20,
    checkpoint_every=20,
    rotate_every=10,
)
EPISODES, STEPS = 6, 10


def arrays(ends_task=False, next_observations=True, seed=0):
    """Six episodes of ten steps in D4RL's layout: position, velocity; a force of up to 3."""
    rng = np.random.default_rng(seed)
    rows = EPISODES * STEPS
    obs = rng.normal([5, -2, 0], [2, 0.5, 0], (rows, 3)).astype(np.float32)
    last = np.arange(rows) % STEPS == STEPS - 1
    found = {
        "observations": obs,
        "actions": rng.uniform(-3, 3, (rows, 2)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": last if ends_task else np.zeros(rows, bool),
        "timeouts": np.zeros(rows, bool) if ends_task else last,
    }
    if next_observations:
        found["next_observations"] = np.roll(obs, -1, 0)
    return found


@pytest.fixture
def file(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays())
    return tmp_path / "mine.npz"


def chunks(path, fields=Fields(), chunk=3):  # noqa: B008
    return Dataset(Recorded(path, fields), chunk=chunk, discount=0.5).validation()


@pytest.mark.parametrize("ends_task", [False, True])
def test_an_end_of_the_recording_is_not_an_end_of_the_task(ends_task, tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays(ends_task))
    found = chunks(tmp_path / "mine.npz")
    rewards = arrays()["rewards"].reshape(EPISODES, STEPS)[-1]  # the last episode validates
    expected = [rewards[i] + rewards[i + 1] / 2 + rewards[i + 2] / 4 for i in range(STEPS - 2)]
    np.testing.assert_allclose(found.reward, expected, rtol=1e-5)
    np.testing.assert_array_equal(found.mask, [1.0] * 7 + [0.0 if ends_task else 1.0])


@pytest.mark.parametrize("ends_task", [False, True])
def test_without_a_last_observation_the_last_chunk_serves_imitation_alone(ends_task, tmp_path):
    """Unless the task ended in it: then there is nothing to bootstrap from."""
    np.savez(tmp_path / "mine.npz", **arrays(ends_task, next_observations=False))
    found = jax.device_put(chunks(tmp_path / "mine.npz"))
    assert len(found.start) == 8 and found.counts.critic == (8 if ends_task else 7)
    drawn, every = (
        np.unique(np.asarray(draw(jax.random.key(0), 500).action[:, 0]))
        for draw in (found.sample, found.sample_all)
    )
    actions = arrays()["actions"].reshape(EPISODES, STEPS, 2)[-1, :8, 0]
    np.testing.assert_array_equal(np.sort(actions[: found.counts.critic]), drawn)
    np.testing.assert_array_equal(np.sort(actions), every)


def test_train_act_resume_and_evaluate_from_the_command_line(file, tmp_path, capsys):
    small = [
        word
        for name, value in dataclasses.asdict(TINY).items()
        if value != getattr(qgf.Config(), name)
        for word in ("--" + name.replace("_", "-"), str(value))
    ]
    out = tmp_path / "run"
    main(["train", "--data", str(file), "--out", str(out), *small])
    assert "rewards: rewards" in capsys.readouterr().out
    record = json.loads((out / "config.json").read_text())
    scale = record["normalization"]["action"]
    low, high = (np.asarray(scale["shift"]) + side * np.asarray(scale["scale"]) for side in (-1, 1))
    trained = arrays()["actions"][: (EPISODES - 1) * STEPS]
    np.testing.assert_allclose([low, high], [trained.min(0), trained.max(0)], rtol=1e-5)
    obs = np.array([5, -2, 0], np.float32)
    before = qgf.load(out).act(obs, key=jax.random.key(0), weight=0.0)
    assert before.shape == (3, 2) and (low - 1e-5 <= before).all() and (before <= high + 1e-5).all()
    assert np.abs(before).max() > 1  # in the units of the data, not in [-1, 1]
    main(["train", "--data", str(file), "--out", str(out), *small, "--steps", "40", "--resume"])
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(out)])
    line = capsys.readouterr().err
    assert stop.value.code == 2 and "no environment to run" in line and line.count("\n") == 1


@pytest.mark.parametrize("named", ["", "d4rl:"])
def test_a_run_finds_its_file_again(named, file, tmp_path, monkeypatch):
    """By its format too, from any folder, and after both were moved together."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    file.rename(before / file.name)
    monkeypatch.chdir(before)
    run = qgf.train("none", f"{named}{file.name}", before / "run", TINY)
    expected = validation_batch(run.record, 4)
    monkeypatch.chdir(tmp_path)
    found = validation_batch(load_record(before / "run"), 4)
    np.testing.assert_array_equal(found.obs, expected.obs)
    before.rename(after)
    record = load_record(after / "run")
    assert record["data"]["folder"] == f"{named}{after / file.name}"
    np.testing.assert_array_equal(validation_batch(record, 4).obs, expected.obs)
    (after / file.name).unlink()
    with pytest.raises(UserError, match=f"file or folder {after / file.name} is gone"):
        validation_batch(record, 4)


def test_a_checkout_that_is_not_installed_reads_its_runs(file, tmp_path, monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", absent)
    run = qgf.train("none", file, tmp_path / "run", TINY)
    assert load_record(run.path)["versions"]["qgf"] == "not installed"


def test_arrays_in_memory_train_as_the_file_does(file, tmp_path):
    seen = []
    run = qgf.train("none", file, tmp_path / "file", TINY)
    again = qgf.train(
        "none",
        from_arrays(**arrays()),
        tmp_path / "arrays",
        TINY,
        callbacks=[lambda split, step, metrics: seen.append((split, step, metrics["loss"].shape))],
    )
    assert seen == [("train", 10, (1,)), ("train", 20, (1,)), ("validation", 20, (1,))]
    losses = [[line["loss"] for line in each.metrics()] for each in (run, again)]
    assert losses[0] == losses[1] and run.checkpoints == [20]
    longer = dataclasses.replace(TINY, steps=40)
    with pytest.raises(UserError, match="began with other episodes"):
        other = from_arrays(**arrays(seed=1))
        qgf.train("none", other, tmp_path / "arrays", longer, resume=True)
    qgf.train("none", from_arrays(**arrays()), tmp_path / "arrays", longer, resume=True)
    assert not [*(tmp_path / "arrays").glob(".qgf-*")]


def test_without_rewards_the_policy_alone_is_trained(tmp_path):
    found = arrays()
    del found["rewards"]
    run = qgf.train("none", from_arrays(**found), tmp_path / "run", TINY, method="bc")
    assert {*run.record["learners"]} == {"policy"}
    with pytest.raises(UserError, match=r"has no rewards.*--reward"):
        qgf.train("none", from_arrays(**found), tmp_path / "other", TINY, method="fql")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"normalize_actions": "none"}, r"actions leave"),
        (
            {"normalize_actions": "none", "normalize_observations": "none"},
            r"actions leave \[-1, 1\] in dimension 0; .*--normalize",
        ),
        ({"chunk": 11}, "no trajectory is as long as a chunk of 11 steps"),
    ],
)
def test_unfit_settings(options, message, file, tmp_path):
    with pytest.raises(UserError, match=message):
        qgf.train("none", file, tmp_path / "run", dataclasses.replace(TINY, **options))
    assert not (tmp_path / "run" / "config.json").exists()


def test_one_episode_cannot_validate(tmp_path):
    found = {name: array[:STEPS] for name, array in arrays().items()}
    np.savez(tmp_path / "one.npz", **found)
    with pytest.raises(UserError, match="1 episode"):
        Recorded(tmp_path / "one.npz", Fields())
