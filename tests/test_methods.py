"""The table of methods: every one trains on real data, saves, loads, acts and is evaluated."""

import dataclasses
import json
import re
from pathlib import Path
from unittest.mock import patch

import jax
import numpy as np
import pytest
from conftest import TASK, TINY

import qgf
from qgf._parsing import parse
from qgf.errors import UserError
from qgf.evaluation._evaluate import _arms, _named, evaluate
from qgf.learners import LEARNERS
from qgf.methods.table import ALIASES, METHODS, find_method, format_methods, kinds_of, settings
from qgf.run.checkpoint import load_learner, load_record
from qgf.run.trainer import train

SHORT = dataclasses.replace(TINY, steps=20, denoise_steps=3)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A run of policy and critic, to build on; read-only."""
    folder = tmp_path_factory.mktemp("base") / "run"
    train(TASK, data, folder, SHORT, seeds=(3, 5))
    return folder


@pytest.fixture(scope="module")
def obs(data):
    return np.load(data / "cube-single-play-v0-000.npz")["observations"][[0, 50, 150]]


def frozen(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def acting_kinds(name):
    kinds = kinds_of(METHODS[name])
    return {kinds[role] for role in METHODS[name].roles}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_saves_loads_and_acts(name, base, data, obs, tmp_path):
    method, run = METHODS[name], base
    before = frozen(base)
    if not set(kinds_of(method).values()) <= {"bc", "iql"}:
        run = tmp_path / "run"
        train(TASK, data, run, SHORT, seeds=(3, 5), method=name, base=base)
        record = load_record(run)
        trained = set(record["learners"].values())
        assert trained == set(kinds_of(method).values()) - {"bc", "iql"}
        losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert all(np.isfinite(line["loss"]) for line in losses)
        for role in record["borrowed"]:
            ours, theirs = (load_learner(folder, role) for folder in (run, base))
            same = jax.tree.map(np.array_equal, jax.tree.leaves(ours), jax.tree.leaves(theirs))
            assert all(same)
    policy = qgf.load(run, method=name, seed=5)
    weight = 0.1 if method.weights else 0.0
    actions = policy.act(obs, key=KEY, weight=weight)
    again = qgf.load(run, method=name, seed=5).act(
        obs, key=KEY, weight=weight, samples=method.samples[0]
    )
    assert actions.shape == (3, 5, 5) and np.isfinite(actions).all() and abs(actions).max() <= 1
    assert actions.tobytes() == again.tobytes()
    far = np.stack([obs[0], np.full_like(obs[1], 3e38), obs[2]])  # too far for the networks
    with pytest.raises(UserError, match="no action for row 1: the velocity became NaN"):
        policy.act(far, key=KEY, weight=weight)
    if any(LEARNERS[kind].fixed_steps for kind in acting_kinds(name)):
        with pytest.raises(UserError, match="acts in the 3 denoising steps it was trained for, n"):
            policy.act(obs, key=KEY, weight=weight, steps=4)
    else:
        assert abs(policy.act(obs, key=KEY, weight=weight, steps=4) - actions).max() > 1e-4
    assert (
        policy.act(obs, key=KEY, weight=weight, steps=3) == policy.act(obs, key=KEY, weight=weight)
    ).all()
    other = qgf.load(run, method=name, seed=3).act(obs, key=KEY, weight=weight)
    assert abs(actions - other).max() > 1e-3
    if method.weights and "policy" in method.roles:
        plain = qgf.load(base, method="bc", seed=5).act(obs, key=KEY)
        unguided = policy.act(obs, key=KEY, weight=0.0, samples=1)
        np.testing.assert_allclose(unguided, plain, atol=1e-6)
        assert abs(policy.act(obs, key=KEY, weight=1.0) - plain).max() > 1e-6
    assert frozen(base) == before


def test_critic_of_one_run_guides_the_policy_of_another(base, data, obs, tmp_path):
    train(TASK, data, tmp_path / "other", SHORT, seeds=(3, 5), method="qam-bootstrapped")
    record = load_record(tmp_path / "other")  # trained at once, without a base
    assert record["learners"] == {"policy": "bc", "critic": "bootstrapped", "qam": "qam"}
    assert record["borrowed"] == {}
    guided = qgf.load(base, method="qgf", critic=tmp_path / "other").act(obs, key=KEY, weight=1.0)
    own = qgf.load(base, method="qgf").act(obs, key=KEY, weight=1.0)
    plain = qgf.load(base, method="bc").act(obs, key=KEY)
    assert abs(guided - own).max() > 1e-6 and abs(guided - plain).max() > 1e-6


def test_ifql_is_the_best_of_32_under_the_usual_critic(base, obs):
    assert settings("ifql") == [(0.0, 32)]
    assert kinds_of(METHODS["ifql"]) == kinds_of(METHODS["bfn"])
    assert LEARNERS["iql"].Hyper().expectile == 0.9
    ours, best = (
        qgf.load(base, method=name, seed=5).act(obs, key=KEY, **given)
        for name, given in {"ifql": {}, "bfn": {"samples": 32}}.items()
    )
    assert ours.tobytes() == best.tobytes()


def test_distilled_flow_needs_no_task(base, data, policy_run, tmp_path):
    out = tmp_path / "distilled"
    train(
        "cube-single-play-v0", data, out, TINY, seeds=(3, 5), method="qgf-distill", base=policy_run
    )
    assert load_record(out)["learners"] == {"distill": "distill"}
    with pytest.raises(UserError, match="has no rewards, so there is no critic for robust-q"):
        train("cube-single-play-v0", data, tmp_path / "x", TINY, method="robust-q")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "name, message",
    [
        ("robust-q", r"has no robust-q, which robust-q needs; train it with `qgf train --method"),
        ("qgf-distill", r"has no distill, which qgf-distill needs; train it with `qgf train"),
        ("qgg", r"no method 'qgg'\. Did you mean 'qgf'\? There are: bc, qgf, "),
    ],
)
def test_missing_networks_are_named(name, message, base):
    for ask in (lambda: evaluate(base, methods=[name]), lambda: qgf.load(base, method=name)):
        with pytest.raises(UserError, match=message):
            ask()
    assert not (base / "eval.json").exists()


def test_diffusion_policy_cannot_be_guided_as_a_flow(data, tmp_path):
    train(TASK, data, tmp_path / "dac", SHORT, method="dac")
    with pytest.raises(UserError, match=r"has no policy, which qgf needs; train it with"):
        qgf.load(tmp_path / "dac", method="qgf")


def test_nothing_left_to_train(base, data, tmp_path):
    with pytest.raises(UserError, match="nothing is left to train for qfql"):
        train(TASK, data, tmp_path / "x", SHORT, seeds=(3, 5), method="qfql", base=base)
    assert not (tmp_path / "x").exists()


def test_arms_of_several_methods_share_the_unguided_policy():
    named = _named(["qgf", "ood", "bfn", "qgf+bfn", "cfgrl"], [4])
    arms = _arms(named, [0.0, 0.1], [4], auto=lambda: 0.2)
    unguided = arms["bc"]
    assert len(unguided) == 1 and set(ALIASES) == {"ood"}
    assert set(arms["qgf"]) & set(arms["qfql"]) == set(unguided)
    assert [arm.samples for arm in arms["bfn"]] == [4]
    assert {(arm.weight, arm.samples) for arm in arms["qgf+bfn"]} >= {(0.0, 4), (0.1, 4)}
    assert {arm.weight for arm in arms["cfgrl"]} == {0.0, 0.1}
    assert not set(arms["cfgrl"]) & set(unguided)
    searched = _arms(named, None, [4], auto=lambda: 0.2)
    assert {arm.weight for arm in searched["qgf"]} == {0.0, 0.2}
    assert len(searched["cfgrl"]) == len(METHODS["cfgrl"].weights)


def test_table_lists_every_method():
    lines = format_methods().splitlines()
    names = [line.split()[0] for line in lines[1 : 1 + len(METHODS)]]
    assert names == list(METHODS)
    for name, line in zip(names, lines[1:], strict=False):
        method = find_method(name)
        assert method.idea in line and method.kind in line and method.reference in line
    used = {kind for m in METHODS.values() for kind in kinds_of(m).values()}
    goals = {name for name, kind in LEARNERS.items() if kind.goal_conditioned}
    assert used | goals == set(LEARNERS) and not used & goals


def test_the_page_on_adding_a_method(base, data, obs, tmp_path):
    page = Path(__file__).parent.parent / "docs/add-a-method.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert "".join(blocks[:2]).count("\n") < 60
    names = {"__name__": __name__}  # dataclasses look their module up
    with patch.dict(METHODS), patch.dict(LEARNERS):
        for block in blocks:
            exec(block, names)
        out = tmp_path / "awr"
        config = dataclasses.replace(SHORT, hyper=names["config"].hyper)
        train(TASK, data, out, config, seeds=(3, 5), method="awr", base=base)
        assert load_record(out)["learners"] == {"awr": "awr"}
        assert load_record(out)["config"]["hyper"] == {"awr": {"temperature": 3.0}}
        assert load_learner(out, "awr").hyper == names["AWR"].Hyper(temperature=3.0)
        words = ["train", "--out", "o", "--method", "awr", "--base", str(base)]
        assert parse([*words, "--temperature", "3"]).config.hyper == names["config"].hyper
        with pytest.raises(UserError, match=r"qam, qsm-bc, awr have it .* trained is bc, iql$"):
            parse(["train", "--out", "o", "--temperature", "3"])
        plain = qgf.load(base, method="bc").act(obs, key=KEY)
        for policy, weight in (
            (qgf.load(out), 0.0),
            (qgf.load(base, method="qgf-normalized"), 1.0),
        ):
            actions = policy.act(obs, key=KEY, weight=weight)
            assert np.isfinite(actions).all() and abs(actions - plain).max() > 1e-3
        assert "awr" in format_methods()
    assert "awr" not in METHODS
