"""Options of training: those of the learners that would be trained, and no others."""

import dataclasses
import re
import shutil
import typing

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from conftest import TASK, TINY

from qgf._parsing import parse
from qgf.cli import main
from qgf.commands import Train
from qgf.comparison import Plan, check_facts
from qgf.config import Config, Spec
from qgf.data import Chunks, GoalChunks
from qgf.data.dataset import Ahead
from qgf.errors import UserError
from qgf.files import read_record, write_record
from qgf.learners import DAC, EDP, FQL, IQL, LEARNERS, QAM, QSM, EnsembleCritic, GoalIQL, NStepIQL
from qgf.run import read_config, train


def parsed(*words):
    return parse(["train", "--out", "o", *map(str, words)])


SHOWN = {
    (): {"times", "ensemble", "aggregation", "kappa", "expectile"},
    ("--method", "fql"): {"times", "ensemble", "aggregation", "kappa", "expectile", "bc_weight"},
    ("--method", "qsm-bc"): {
        *("ensemble", "aggregation", "kappa", "expectile", "bc_weight", "temperature")
    },
    ("--method", "bc"): {"times"},
    ("--critic", "n-step"): {"times", "ensemble", "aggregation", "kappa", "expectile", "horizon"},
    ("--critic", "task-dqc"): {
        *("times", "ensemble", "aggregation", "kappa", "critic_chunk", "chunk_critic"),
        *("backup", "backup_level", "distill_expectile"),
    },
    ("--method", "qgf-emaq"): {"times", "ensemble", "aggregation", "kappa", "next_samples"},
    ("--critic", "monte-carlo"): {"times", "ensemble", "aggregation", "kappa"},
    ("--env", "cube-single-play-oraclerep-v0", "--policy", "p"): {
        *("ensemble", "aggregation", "kappa", "goal_current", "goal_trajectory", "goal_sampling"),
        *("critic_chunk", "chunk_critic", "backup", "backup_level", "distill_expectile"),
    },
}


@pytest.mark.parametrize("words", SHOWN)
def test_the_help_shows_the_options_of_what_is_trained(words, capsys):
    main(["train", *words, "--help"])
    lines = capsys.readouterr().out.splitlines()
    options = (re.match(r"(?:│ |  )--([a-z][\w-]*)", line) for line in lines)
    shown = {option[1].replace("-", "_") for option in options if option}
    trainer = {field.name for kind in (Train, Config) for field in dataclasses.fields(kind)}
    assert shown == SHOWN[words] | trainer - {"config", "hyper"}
    for name in SHOWN[words]:
        assert not hasattr(Config, name)


def test_an_option_is_for_the_learners_that_have_it():
    config = parsed("--method", "fql", "--bc-weight", "3", "--no-resume").config
    assert config.hyper == (FQL.Hyper(bc_weight=3.0),)
    words = ["compare", "--out", "o", "--envs", TASK, "--data", "d", "--methods", "fql", "edp"]
    config = parse([*words, "--bc-weight", "3", "--expectile=0.8"]).config
    values = (IQL, NStepIQL, GoalIQL)
    every = (FQL, EDP, DAC, QSM, *values)
    assert {*config.hyper} == {
        kind.Hyper(**{"expectile": 0.8} if kind in values else {"bc_weight": 3.0}) for kind in every
    }
    assert parse(words).config == Config()


def test_the_hyperparameters_of_a_base_run_stand_for_those_not_given(run, tmp_path):
    base = shutil.copytree(run, tmp_path / "run")
    record = read_record(base / "config.json")
    record["config"]["hyper"]["iql"]["expectile"] = 0.7
    write_record(base / "config.json", record)
    assert parsed("--base", base, "--policy", run, "--method", "edp").config == TINY
    config = parsed("--base", base, "--method", "edp", "--times", "grid").config
    assert config == TINY.having(EDP.Hyper(times="grid"))
    with pytest.raises(UserError, match=r"what is trained is edp$"):
        parsed("--base", base, "--method", "edp", "--expectile", "0.7")


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--bc-weight", "1"],
            "--bc-weight has no effect: fql, edp, dac, qsm-bc have it",
        ),
        (["--no-chunk-critic"], "--chunk-critic has no effect: dqc, task-dqc have it"),
        (["--method", "bc", "--expectile=0.5"], "iql, n-step, goal-iql have it .* trained is bc$"),
        (["--policy", "p", "--times", "grid"], "bc, cfgrl, edp have it .* trained is iql$"),
    ],
)
def test_an_option_without_effect(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--out", "o", *words])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert re.search(message, said.strip())


def test_hyperparameters_without_effect(run, data, tmp_path):
    for hyper, options in (
        (FQL.Hyper(bc_weight=3.0), {}),
        (IQL.Hyper(expectile=0.7), {"method": "bc"}),
        (IQL.Hyper(expectile=0.7), {"method": "edp", "base": run}),
    ):
        config = dataclasses.replace(TINY, hyper=(hyper,))
        with pytest.raises(UserError, match=r"\(.*\) has no effect: what is trained is "):
            train(TASK, data, tmp_path / "run", config, seeds=(3, 5), **options)
    assert not (tmp_path / "run" / "config.json").exists()


KEY = jax.random.key(0)
OTHER = {float: 0.4, int: 3, bool: False}
FIELDS = [
    (kind, field.name)
    for kind, learner in LEARNERS.items()
    for field in dataclasses.fields(learner.Hyper)
]


def program(kind, config):
    """The computations of a learner's loss and of what it acts with, and its arrays' shapes."""
    goal = LEARNERS[kind].goal_conditioned
    spec, obs, one = Spec(3, 1, 2, 3 * goal), jnp.ones((30, 3)), jnp.ones(20)
    data = Chunks(obs, obs[:, :1], jnp.arange(20), one, one, 2, one)
    if goal:
        draws = config.of(LEARNERS[kind].Hyper)
        chances = draws.goal_current, draws.goal_trajectory, draws.goal_sampling
        data = GoalChunks(data, obs, jnp.full(20, 29), draws.ahead() or 2, 0.9, *chances)
    ahead = config.of(LEARNERS[kind].Hyper).ahead()
    needed = {"policy": "bc", "critic": "iql", "qam": "qam"}
    held = {r: LEARNERS[k].create(spec, config, KEY) for r, k in needed.items()}
    learner = LEARNERS[kind].create(spec, config, KEY)

    def compute(learner, held):
        batch = data.sample(KEY, 4)
        if ahead and not goal:  # as the data are cut: n rewards of 1
            reward, action = jnp.full(4, float(ahead)), jnp.ones((4, ahead))
            follows = Ahead(reward, batch.mask, batch.obs, action, whole=batch.mask)
            batch = batch._replace(ahead=follows)
        bound = learner.bind(batch.obs, batch.goal if goal else None)
        acted = bound(batch.action) if isinstance(learner, EnsembleCritic) else None
        return learner.loss(batch, KEY, held)[0], acted

    arrays, static = eqx.partition((learner, held), eqx.is_array)
    traced = jax.make_jaxpr(lambda arrays: compute(*eqx.combine(arrays, static)))(arrays)
    return str(traced), [leaf.shape for leaf in jax.tree.leaves(arrays)]


@pytest.mark.parametrize("kind, name", FIELDS)
def test_every_hyperparameter_is_read(kind, name):
    """Another value makes another program, or networks of other shapes."""
    usual = LEARNERS[kind].Hyper(**{"aggregation": "mean"} if name == "kappa" else {})
    hint = typing.get_type_hints(LEARNERS[kind].Hyper)[name]
    choices = [v for v in typing.get_args(hint) if v != getattr(usual, name)]
    other = choices[0] if choices else OTHER[hint]
    assert other != getattr(usual, name)
    config = Config(width=4, depth=1, chunk=2, denoise_steps=2).having(usual)
    changed = config.having(dataclasses.replace(usual, **{name: other}))
    assert program(kind, changed) != program(kind, config) == program(kind, config)


def test_settings_of_format_2_are_those_of_the_learners():
    """Hyperparameters stood among the others then, null for the default of each learner."""
    flat = {name: value for name, value in vars(TINY).items() if name != "hyper"}
    flat |= {"expectile": 0.7, "bc_weight": None, "temperature": 0.5, "critic_chunk": 25}
    tempered = {kind.Hyper(temperature=0.5) for kind in (QAM, QSM)}
    config = read_config(flat)
    assert {*config.hyper} == {IQL.Hyper(expectile=0.7), GoalIQL.Hyper(expectile=0.7), *tempered}
    assert dataclasses.replace(config, hyper=()) == TINY


def test_a_comparison_of_format_2_goes_on(tmp_path):
    plan = Plan(
        tmp_path, {}, Config(hyper=(IQL.Hyper(expectile=0.7),)), (0,), {"tune": 1, "test": 2}
    )
    every = plan.config.having(GoalIQL.Hyper(expectile=0.7))
    plan = dataclasses.replace(plan, config=every)
    flat = {name: value for name, value in vars(Config()).items() if name != "hyper"}
    kept = tmp_path / "compare.json"
    write_record(tmp_path / "episodes" / "e.json", {})
    write_record(kept, plan.facts() | {"config": flat | {"expectile": 0.7, "bc_weight": None}})
    check_facts(plan)
    assert read_record(kept)["config"]["hyper"]["iql"]["expectile"] == 0.7
    with pytest.raises(UserError, match=r"holds a comparison with other settings \(config\)"):
        check_facts(dataclasses.replace(plan, config=Config()))
