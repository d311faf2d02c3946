"""Evaluation: pairing, independence of how episodes are packed, and the summary."""

import dataclasses
import functools
import json
import multiprocessing
import shutil
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TASK
from evaluations import evaluation

import qgf.act.rollout
from qgf.act.calibration import auto_weight
from qgf.act.rollout import Arm, Job, Outcome, _env_seed, make_jobs, roll_out
from qgf.cli import main
from qgf.config import Spec
from qgf.core.flow import FAILED
from qgf.errors import UserError
from qgf.evaluation._evaluate import _summary, chosen_arms, evaluate, format_result
from qgf.evaluation.statistics import success_interval, wilson_interval
from qgf.files import FORMAT, read_record, sha256, write_json, write_record
from qgf.run.checkpoint import load_learner, load_record
from qgf.run.evaluation import read_evaluation, write_evaluation
from qgf.tasks import find_task
from qgf.tasks._workers import Reply, Workers


def fake_step(obs, actions):
    """The next observation, and a reward that tells every action from every other."""
    gains = np.linspace(1, 2, actions.size).reshape(actions.shape)
    reward = float((gains * actions).sum())
    return np.tanh(obs + np.roll(np.resize(actions, obs.shape), 3)).astype(np.float32), reward


class FakeWorkers(Workers):
    """Environments without physics: episodes of 2 to 5 chunks, decided by their seed."""

    seeds: ClassVar[list] = []

    def __init__(self, env, slots, workers):
        self.state = {}

    def request(self, requests):
        return {slot: self.serve(slot, *request) for slot, request in requests.items()}

    def serve(self, slot, kind, value):
        if kind == "reset":
            FakeWorkers.seeds.append(value["seed"])
            random = np.random.default_rng(value["seed"])
            obs, left = random.normal(size=28).astype(np.float32), random.integers(2, 6)
            self.state[slot] = obs, left
            return Reply(obs)
        obs, left = self.state[slot]
        obs, reward = fake_step(obs, value)
        self.state[slot] = obs, left - 1
        return Reply(obs, reward, 5, left == 1, reward > 0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(qgf.act.rollout, "Workers", FakeWorkers)
    FakeWorkers.seeds = []


def rolled(run, jobs, slots, workers=1, seed=0):
    learners = {role: load_learner(run, role) for role in ("policy", "critic")}
    return roll_out(find_task(TASK), Spec(28, 5, 5), learners, jobs, workers, slots, seed)


def test_an_episode_without_an_action_ends_with_an_error(fake, monkeypatch):
    lost = {"weight": 2.0}

    def act(obs, goal, weight, start, turn):
        failed = (weight == lost["weight"]) & (turn == 1)
        return np.zeros((*turn.shape, 25), np.float32), np.where(failed, FAILED, 3)

    monkeypatch.setattr(qgf.act.rollout, "actor", lambda *_: act)
    both = jobs([Arm(), Arm("bc", 2.0)], episodes=2, splits=("test",))
    with pytest.raises(UserError, match=r"^no action in test episode \d, weight 2: the networks'"):
        roll_out(find_task(TASK), Spec(28, 5, 5), {}, both, 1, 4, 0)
    lost["weight"] = 3.0
    outcomes = roll_out(find_task(TASK), Spec(28, 5, 5), {}, both, 1, 4, 0)
    assert all(o.fallbacks == 3 * o.length / 5 for o in outcomes.values())


def jobs(arms, episodes=3, splits=("tune", "test"), seeds=2):
    return make_jobs(arms, seeds, dict.fromkeys(splits, episodes))


def guided(weight):
    return Arm("qgf", weight)


def test_packing_of_episodes_does_not_matter(run, fake):
    work = jobs([guided(0.0), guided(0.5)])
    whole = rolled(run, work, slots=6)
    assert len({outcome.total for outcome in whole.values()}) == len(work)
    for slots in (1, 10):
        # Another number of rows in a product may round its sums in another order.
        other = rolled(run, work, slots)
        for job in work:
            assert other[job].total == pytest.approx(whole[job].total, abs=2e-5)
            assert other[job].length == whole[job].length


def test_episode_equals_a_loop_by_hand(run, fake):
    job = Job(guided(0.5), 1, "test", 2)
    actual = rolled(run, [*jobs([guided(0.0)]), job], slots=6, seed=9)[job]
    take = lambda x: x[1] if isinstance(x, jax.Array) else x  # noqa: E731
    policy, critic = (jax.tree.map(take, load_learner(run, name)) for name in ("policy", "critic"))
    random = np.random.default_rng(_env_seed(9, 5))
    obs, chunks = random.normal(size=28).astype(np.float32), random.integers(2, 6)
    total = 0.0
    for turn in range(chunks):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(9), 5), turn)
        noise = jax.random.normal(key, (1, 25))
        row = jnp.asarray(obs)[None]
        action = qgf.guided_sample(policy.bind(row), critic.bind(row), noise, 0.5)
        obs, reward = fake_step(obs, np.asarray(action).reshape(5, 5))
        total += reward
    assert actual.total == pytest.approx(total, abs=1e-4)
    assert (actual.length, actual.success) == (5 * chunks, reward > 0)


def test_weights_meet_the_same_starts_and_noise(run, fake):
    arms = [Arm(), guided(1e-12), guided(0.5)]
    outcomes = rolled(run, jobs(arms), slots=6)
    for job, outcome in outcomes.items():
        if job.arm == guided(1e-12):
            plain = outcomes[Job(Arm(), *list(vars(job).values())[1:])]
            pushed = outcomes[Job(guided(0.5), *list(vars(job).values())[1:])]
            assert outcome.total == pytest.approx(plain.total, abs=1e-6)
            assert abs(pushed.total - plain.total) > 1e-4
    starts, counts = np.unique(FakeWorkers.seeds, return_counts=True)
    # Three tune and three test starts, each met by every weight and training seed.
    assert len(starts) == 6 and (counts == 6).all()


def test_tune_and_test_starts_are_disjoint():
    tune, test = (
        {_env_seed(0, Job(Arm(), 0, split, i).start) for i in range(500)}
        for split in ("tune", "test")
    )
    assert len(tune | test) == 1000
    assert _env_seed(0, 3) != _env_seed(1, 3)


class ObservedWorkers(Workers):
    """Real environments, whose rewards are replaced by what tells trajectories apart."""

    def request(self, requests):
        replies = super().request(requests)
        return {i: r._replace(reward=float(abs(r.obs).sum())) for i, r in replies.items()}


def test_number_of_processes_does_not_matter(run, monkeypatch):
    monkeypatch.setattr(qgf.act.rollout, "Workers", ObservedWorkers)
    results = [
        evaluate(run, (0.5,), episodes=1, tune_episodes=1, workers=workers, slots=6)
        for workers in (1, 2)
    ]
    assert results[0] == results[1]
    returns = [row.test.return_ for row in results[0].methods["qgf"].settings]
    assert returns[0] != returns[1]


def test_layout_of_the_result(run, fake, tmp_path):
    result = evaluate(run, (0.3, 0.1, 0.1), episodes=4, tune_episodes=2, best_of=(3, 3, 1), slots=6)
    write_evaluation(tmp_path, result)
    kept = read_evaluation(tmp_path)
    assert kept == result
    result = {"bc": result.methods["bc"].test.json(), **json.loads(json.dumps(result.json()))}
    result["weights"] = result["methods"]["qgf"]["settings"]
    assert (result["env"], result["run"], result["checkpoint"]) == (TASK, str(run), 40)
    files = {
        role: run / f"checkpoints/00000040/{role}.safetensors" for role in ("policy", "critic")
    }
    assert result["learners"] == {role: sha256(path) for role, path in files.items()}
    assert result["training_seeds"] == [3, 5]
    assert result["episodes"] == {"tune": 2, "test": 4}
    assert [row["weight"] for row in result["weights"]] == [0, 0.1, 0.3]
    for row in result["weights"]:
        for split, episodes in (("tune", 4), ("test", 8)):
            part = row[split]
            assert part["episodes"] == episodes
            low, high = wilson_interval(round(part["success"] * episodes), episodes)
            assert part["ci95"][0] <= low + 1e-9 and high - 1e-9 <= part["ci95"][1]
            assert part["success"] == np.mean(part["success_per_seed"])
            assert 10 <= part["length"] <= 25 and np.isfinite(part["return"])
    qgf = result["methods"]["qgf"]
    chosen = next(r for r in result["weights"] if r["weight"] == qgf["weight"])
    assert json.loads(json.dumps(result["bc"])) == result["weights"][0]["test"]
    assert qgf["test"].items() >= chosen["test"].items()
    best_of = result["methods"]["bfn"]
    assert [row["samples"] for row in best_of["settings"]] == [1, 3] and best_of["samples"] in (
        1,
        3,
    )
    assert best_of["test"]["episodes"] == 8
    assert 10 <= best_of["test"]["length"] <= 25
    text = format_result(kept)
    assert "qgf w = 0.3" in text and "bfn of 3" in text


def outcomes_of(table):
    """Outcomes from {weight: (tune wins, test wins)} of two seeds, five episodes each."""
    outcomes = {}
    for weight, wins in table.items():
        for split, won in zip(("tune", "test"), wins, strict=True):
            for i in range(10):
                job = Job(guided(weight) if weight else Arm(), i // 5, split, i % 5)
                outcomes[job] = Outcome(i < won, -10.0 * weight - (i >= won), 100 + i)
    return outcomes


def summary(table, outcomes=None):
    arms = [guided(w) if w else Arm() for w in table]
    return _summary(outcomes or outcomes_of(table), {"bc": [Arm()], "qgf": arms})


def test_weight_is_chosen_on_the_tune_episodes_alone():
    result = summary({0.0: (2, 4), 0.1: (7, 5), 0.3: (6, 10)})
    assert result["qgf"].weight == 0.1
    qgf = result["qgf"].test
    assert qgf.success == 0.5 and result["bc"].test.success == 0.4
    assert qgf.difference == pytest.approx(0.1)
    assert qgf.ci95 == success_interval(np.array([[1] * 5, [0] * 5]))
    assert qgf.success_per_seed == (1.0, 0.0)
    assert qgf.length == 104.5 and qgf.return_ == -1.5
    low, high = qgf.difference_ci95
    assert low <= 0.1 <= high


def test_ties_go_to_the_higher_return_then_to_the_smaller_weight():
    unguided = summary({0.0: (5, 0), 0.1: (5, 9)})
    assert unguided["qgf"].weight == 0.0
    test = unguided["qgf"].test
    assert test.difference == 0 and test.difference_ci95 == (0, 0)
    table = {0.0: (5, 0), 0.1: (5, 9), 0.3: (5, 9)}
    outcomes = outcomes_of(table)
    for outcome in outcomes.values():
        outcome.total = 0.0
    assert summary(table, outcomes)["qgf"].weight == 0.0
    for job, outcome in outcomes.items():
        outcome.total = float(job.arm.weight == 0.3)
    assert summary(table, outcomes)["qgf"].weight == 0.3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weights": (-0.1,)}, "at least 0, got -0.1"),
        ({"weights": (float("inf"),)}, "at least 0, got inf"),
        ({"weights": (1e39,)}, r"at least 0, got 1e\+39"),
        ({"methods": ("bfn",)}, "bfn: not tuned by a weight"),
        ({"episodes": 0}, "must lie between 1 and"),
        ({"tune_episodes": 0}, "must lie between 1 and"),
        ({"best_of": (0,)}, "must lie between 1 and"),
        ({"slots": 10**9}, "slots must lie between 1 and 10,000, got 1000000000"),
        ({"workers": 10**6}, "workers must lie between 1 and 1,000, got 1000000"),
        ({"seed": 2**70}, r"must lie in \[0, 2\^31\), got 1180"),
        ({"slots": 0}, "must lie between 1 and"),
        ({"seed": -1}, r"must lie in \[0, 2\^31\), got -1"),
        ({"checkpoint": "30"}, "no checkpoint '30'"),
    ],
)
def test_unfit_arguments(change, message, run):
    with pytest.raises(UserError, match=message):
        evaluate(run, **{"weights": (0.1,), **change})
    assert not (run / "eval.json").exists()


def test_another_critic_guides_and_is_named(run, other_critic, fake):
    options = {"episodes": 2, "tune_episodes": 1, "slots": 4}
    own, other = (evaluate(run, (0.5,), critic=c, **options) for c in (None, other_critic))
    assert own.methods["bc"].test == other.methods["bc"].test
    assert own.methods["qgf"].settings[1] != other.methods["qgf"].settings[1]
    assert other.critic == str(other_critic) and other.critic_checkpoint == 40
    assert other.learners["policy"] == own.learners["policy"]
    path = other_critic / "checkpoints/00000040/critic.safetensors"
    assert other.learners["critic"] == sha256(path) != own.learners["critic"]


def test_default_weight_is_that_of_the_networks_that_act(run, other_critic, fake):
    options = {"episodes": 1, "tune_episodes": 1, "slots": 4}
    result = evaluate(run, methods=("qgf", "qfql"), critic=other_critic, **options)
    learners = {
        "policy": load_learner(run, "policy"),
        "critic": load_learner(other_critic, "critic"),
    }
    weight = auto_weight(learners, load_record(other_critic))
    for name in ("qgf", "qfql"):
        rows = result.methods[name].settings
        assert [row.weight for row in rows] == [0.0, pytest.approx(weight, rel=1e-5)]
    earlier = evaluate(run, checkpoint="20", **options)
    assert earlier.methods["qgf"].settings[1].weight != pytest.approx(weight, rel=1e-2)
    assert earlier.checkpoint == 20


def test_denoising_steps_are_chosen_for_an_evaluation(run, fake, tmp_path):
    options = {"episodes": 2, "tune_episodes": 1, "slots": 4}
    own, same, other = (
        evaluate(run, (0.5,), denoise_steps=steps, **options) for steps in (None, 10, 3)
    )
    assert same == dataclasses.replace(own, denoise_steps=10)
    for name in ("bc", "qgf"):
        assert other.methods[name].settings[-1] != own.methods[name].settings[-1]
    assert {arm.steps for arm in chosen_arms(other)} == {3}
    kept = other.json()
    (tmp_path / "eval.json").write_text(json.dumps(kept))
    assert read_evaluation(tmp_path).denoise_steps == 3
    del kept["denoise_steps"]  # as earlier versions wrote it
    (tmp_path / "eval.json").write_text(json.dumps(kept))
    assert read_evaluation(tmp_path).denoise_steps is None


def test_data_that_were_moved_are_named(run, data, fake, tmp_path):
    options = {"episodes": 1, "tune_episodes": 1, "slots": 4}
    copied = shutil.copytree(run, tmp_path / "run")
    record = read_record(copied / "config.json")
    record["data"] |= {"folder": str(tmp_path / "gone"), "relative": "gone"}
    write_record(copied / "config.json", record)
    with pytest.raises(UserError, match=r"gone is gone; name where they are \(--data\)"):
        evaluate(copied, **options)
    moved = evaluate(copied, data=data, **options)
    assert moved.methods["qgf"] == evaluate(run, **options).methods["qgf"]


DAMAGED = [
    ((), []),
    ((), {}),
    (("methods",), {}),
    (("methods", "qgf"), None),
    (("methods", "qgf", "settings"), []),
    (("methods", "qgf", "weight"), 0.5),
    (("methods", "qgf", "weight"), "0.7"),
    (("methods", "qgf", "settings", 0, "tune"), {}),
    (("methods", "qgf", "settings", 0, "samples"), 1.5),
    (("methods", "qgf", "test", "ci95"), [0.1]),
    (("methods", "qgf", "test", "difference_ci95"), None),
    (("methods", "bc", "test", "success"), True),
    (("checkpoint",), "40"),
    (("critic",), 3),
    (("learners",), None),
    (("seed",), None),
    (("episodes", "tune"), None),
]


@pytest.mark.parametrize(("at", "value"), DAMAGED)
def test_a_damaged_result_is_named_and_never_read(at, value, run, tmp_path):
    result = json.loads(
        json.dumps({**evaluation(run).json(), "checksum": "edited", "format": FORMAT})
    )
    write_json(tmp_path / "eval.json", result)
    read_evaluation(tmp_path)
    if not at:
        result = value
    elif at == ("methods",):
        del result["methods"]
    else:
        place = functools.reduce(lambda part, key: part[key], at[:-1], result)
        place[at[-1]] = value
    write_json(tmp_path / "eval.json", result)
    with pytest.raises(UserError, match=r"eval\.json") as error:
        read_evaluation(tmp_path)
    assert "\n" not in str(error.value)


def test_what_was_chosen_is_filmed_once(run):
    result = evaluation(run, 0.7)
    assert chosen_arms(result) == [Arm(), Arm("qgf", 0.7)]
    others = {"weight": 0.0, "samples": 1}, {"weight": 0.0, "samples": 4}
    for name, change in zip(("qgf", "qgf+bfn"), others, strict=True):
        result.methods[name] = dataclasses.replace(result.methods["qgf"], **change)
    assert chosen_arms(result) == [Arm(), Arm("qgf+bfn", 0.0, 4)]


@pytest.fixture
def played(monkeypatch, run, tmp_path):
    """`qgf eval` with nothing played or filmed: how `evaluate` and `film` were called."""
    calls = {}

    def evaluate(*args, **options):
        calls["evaluate"] = args, options
        return evaluation(run, 0.7)

    def film(*args, **options):
        calls["film"] = args, options

    monkeypatch.setattr("qgf.evaluation._evaluate.evaluate", evaluate)
    monkeypatch.setattr("qgf.reports.video.film", film)
    monkeypatch.setattr("qgf.reports.video.check_filming", lambda *args: calls.update(check=args))
    calls["run"] = tmp_path / "run"
    calls["run"].mkdir()
    shutil.copy(run / "config.json", calls["run"])
    return calls


def test_the_command_passes_everything_on(played, run, tmp_path):
    folder, film, critic = played["run"], tmp_path / "a.mp4", run
    options = "--method qgf bfn --weights 0.1 0.2 --best-of 3 --episodes 7 --tune-episodes 5"
    more = "--workers 3 --slots 4 --seed 6 --checkpoint 20 --data d --denoise-steps 7 --success won"
    argv = ["eval", str(folder), *options.split(), *more.split()]
    main([*argv, "--critic", str(critic), "--video", str(film), "--json", str(tmp_path / "j")])
    assert played["evaluate"] == (
        (folder, (0.1, 0.2)),
        {
            **{"methods": ("qgf", "bfn"), "critic": critic, "episodes": 7, "tune_episodes": 5},
            **{"best_of": (3,), "workers": 3, "slots": 4, "seed": 6, "checkpoint": "20"},
            **{"data": Path("d"), "denoise_steps": 7, "success": "won"},
        },
    )
    assert played["check"] == (TASK, film)
    assert played["film"] == (
        (folder, film, [Arm(), Arm("qgf", 0.7)]),
        {"critic": critic, "seed": 6, "checkpoint": "40", "critic_checkpoint": "40"},
    )
    kept = read_evaluation(folder)
    assert json.loads(json.dumps(kept.json())) == json.loads((tmp_path / "j").read_text())
    assert kept == evaluation(run, 0.7)


def test_a_result_that_cannot_be_kept_is_printed_all_the_same(played, tmp_path, capsys):
    def refuse(run, result):
        raise UserError("cannot write here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qgf.run.evaluation.write_evaluation", refuse)
        with pytest.raises(SystemExit) as stop:
            main(["eval", str(played["run"])])
        alone = capsys.readouterr()
        main(["eval", str(played["run"]), "--json", str(tmp_path / "j")])
        kept = capsys.readouterr()
    assert stop.value.code == 2 and alone.err == "qgf: cannot write here\n"
    assert kept.out == alone.out and "qgf w = 0.7" in kept.out
    assert kept.err == f"qgf: cannot write here; the result is in {tmp_path / 'j'}\n"
    assert (tmp_path / "j").exists()


@pytest.mark.parametrize("flag", ["--json", "--video"])
def test_what_cannot_be_written_is_said_before_the_work(flag, run, played, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(
        "qgf.evaluation._evaluate.evaluate", lambda *args, **options: pytest.fail("it began")
    )
    for out in (tmp_path, tmp_path / "file" / "x"):
        (tmp_path / "file").write_text("")
        with pytest.raises(SystemExit) as stop:
            main(["eval", str(run), flag, str(out)])
        assert stop.value.code == 2
    assert {path.name for path in tmp_path.iterdir()} == {"file", "run"}


def test_run_without_a_task(policy_run):
    with pytest.raises(UserError, match="the run has no critic, so there is no task to evaluate"):
        evaluate(policy_run, (0.1,))


def test_death_and_complaints_of_processes():
    before = set(multiprocessing.active_children())
    with Workers(find_task(TASK), 2, 2) as pool:
        assert pool.request({1: ("reset", {"seed": 0})})[1].obs.shape == (28,)
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
            process.join()
        with pytest.raises(UserError, match="an environment process died"):
            pool.request({0: ("reset", {"seed": 0}), 1: ("reset", {"seed": 0})})
    task = find_task(TASK)
    task.name = "cube-singel-v0"
    with Workers(task, 1, 1) as pool, pytest.raises(UserError, match="Did you mean"):
        pool.request({0: ("reset", {"seed": 0})})
