"""Options of a command that trains: its own, and those of the learners that it would train."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Annotated, Any

import tyro

from qgf.config import Config
from qgf.errors import UserError
from qgf.learners import LEARNERS


def with_options(command: type, kinds: Collection[str], config: Config, given: set[str]) -> type:
    """Return the command with the hyperparameters of these learners, in a group for each.

    What learners of the group before have as well is one option.

    Args:
        config: what stands for options that are not given.
        given: names of the options on the command line.

    Raises:
        UserError: an option of other learners is given.
    """
    for name in given:
        owners = [kind for kind, learner in LEARNERS.items() if name in _names(learner)]
        if owners and not {*owners} & {*kinds}:
            raise UserError(
                f"--{name.replace('_', '-')} has no effect: {', '.join(owners)} have it (`qgf "
                f"methods` says what trains them), and what is trained is {', '.join(kinds)}"
            )
    groups: list[tuple[str, Any, Any]] = []
    seen: set[str] = set()
    for kind in kinds:
        learner, hyper = LEARNERS[kind], config.of(LEARNERS[kind].Hyper)
        hidden = [
            (field.name, Annotated[field.type, tyro.conf.Suppress], field)
            for field in dataclasses.fields(hyper)
            if field.name in seen
        ]
        seen |= {*_names(learner)}
        form = dataclasses.make_dataclass(kind, hidden, bases=(learner.Hyper,), frozen=True)
        title = tyro.conf.arg(name=kind, help=str(learner.__doc__).splitlines()[0])
        shown = Annotated[form, title, tyro.conf.OmitArgPrefixes]
        groups.append((kind.replace("-", "_"), shown, form(**vars(hyper))))
    own = {field.name: field.type for field in dataclasses.fields(command)}
    every = dataclasses.make_dataclass("Groups", groups, frozen=True)
    shared = dataclasses.replace(config, hyper=())
    fields = [
        ("config", own["config"], shared),
        ("hyper", Annotated[every, tyro.conf.arg(name="")], every()),
    ]
    namespace = {"__doc__": command.__doc__}
    name = command.__name__
    return dataclasses.make_dataclass(
        name, fields, bases=(command,), namespace=namespace, frozen=True
    )


def settled(
    command: Any, kinds: Collection[str], config: Config, given: set[str]
) -> Callable[[], None]:
    """Return a parsed command whose settings hold the hyperparameters of learners of `kinds`.

    An option is for all of them that have it.
    """
    values: dict[str, Any] = {}
    for group in vars(command.hyper).values():
        values = {name: vars(group)[name] for name in given & vars(group).keys()} | values
    hyper = [
        dataclasses.replace(
            config.of(LEARNERS[kind].Hyper),
            **{name: values[name] for name in _names(LEARNERS[kind]) if name in values},
        )
        for kind in kinds
    ]
    return dataclasses.replace(command, config=command.config.having(*hyper))


def _names(learner: type) -> list[str]:
    return [field.name for field in dataclasses.fields(learner.Hyper)]
