"""The words of a command line, before and around what tyro makes of them."""

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Union

import tyro

from qgf.commands import COMMANDS, LISTS, Compare, Train
from qgf.config import PRESETS, Config
from qgf.errors import UserError, nearest


def _trained(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the kinds of learners that `qgf train` would train, twice."""
    from qgf.run import kinds_to_train

    env, method, critic, policy, base = (
        _value(words, flag) for flag in ("--env", "--method", "--critic", "--policy", "--base")
    )
    kinds = kinds_to_train(env, method or Train.method, critic, policy, base)
    return kinds, kinds


def _compared(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the kinds of learners that `qgf compare` needs, and all.

    So that its options mean the same for methods that are added later.
    """
    from qgf.comparison import kinds_compared
    from qgf.learners import LEARNERS

    methods, envs = (_values(words, flag) for flag in ("--methods", "--envs"))
    return kinds_compared(methods or Compare.methods, envs), [*LEARNERS]


# Whose options a command has, and which learners they are for, by its words.
TRAINING = {"train": _trained, "compare": _compared}


def parse(argv: list[str]) -> Callable[[], None]:
    """Return the command that the words ask for. UserError if they make no sense."""
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise UserError(
            f"no command {argv[0]!r}.{nearest(argv[0], COMMANDS)} There are: {', '.join(COMMANDS)}"
        )
    _check_words(argv)
    commands, words = dict(COMMANDS), argv[1:]
    trains = bool(argv) and argv[0] in TRAINING
    if trains:
        from qgf._options import settled, with_options  # which import JAX

        shown, meant = TRAINING[argv[0]](words)
        config = _default_config(words)
        commands[argv[0]] = with_options(commands[argv[0]], shown, config, _given(words))
    kinds = [
        Annotated[kind, tyro.conf.subcommand(name, default=tyro.MISSING_NONPROP)]
        for name, kind in commands.items()
    ]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            command = tyro.cli(Union[tuple(kinds)], args=argv, prog="qgf")  # noqa: UP007
    except SystemExit as stop:
        if not stop.code:  # the help, which is printed
            return lambda: None
        raise UserError(_one_line(printed.getvalue())) from None
    return settled(command, meant, config, _given(words)) if trains else command


def _check_words(argv: list[str]) -> None:
    """Raise UserError for what is wrong whatever the command."""
    flag = ""
    for word in argv:
        if "\0" in word:
            raise UserError(f"the argument {word!r} holds a NUL character")
        value = word
        if word.startswith("--"):
            flag, _, value = word.partition("=")
        if flag.replace("_", "-") in LISTS and "," in value:
            apart = " ".join(filter(None, value.split(",")))
            raise UserError(f"put spaces between the values of {flag}: {flag} {apart}")


def _one_line(box: str) -> str:
    """Flatten a parser's framed message to one line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    return re.sub(r"\s+", " ", re.sub(r"[─│╭╮╰╯┌┐└┘]", " ", text)).strip()


def _default_config(argv: list[str]) -> Config:
    """Return the settings of --preset or --base, which stand for what is not given."""
    name, base = _value(argv, "--preset"), _value(argv, "--base")
    if base is not None and name is None:
        from qgf.run import load_record, read_config

        return read_config(load_record(Path(base))["config"])
    return PRESETS.get(name or "laptop", PRESETS["laptop"])


def _values(argv: list[str], flag: str) -> list[str]:
    """Return what the command line gives for a flag, the last time, before it is parsed."""
    values: list[str] = []
    open_ = False
    for word in argv:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            open_ = name == flag
            values = ([value] if equals else []) if open_ else values
        elif open_:
            values.append(word)
    return values


def _value(argv: list[str], flag: str) -> str | None:
    return next(iter(_values(argv, flag)), None)


def _given(words: list[str]) -> set[str]:
    """Return the names of the options among the words of a command line."""
    options = (word.partition("=")[0] for word in words if word.startswith("--"))
    return {word[2:].replace("-", "_").removeprefix("no_") for word in options}
