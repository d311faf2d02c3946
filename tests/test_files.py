"""Atomic files, locks, records: what a kill leaves, and what damage is noticed."""

import json
import os
import random
import signal
import subprocess
import sys

import pytest

from qgf import files
from qgf.errors import UserError
from qgf.files import (
    atomic_open,
    check_form,
    locked,
    read_json,
    read_record,
    read_value,
    retire,
    sweep,
    write_json,
    write_record,
    write_value,
)

RECORD = {"a": [1, 2.5, None, True], "b": {"c": "é", "d": 1e-9}, "e": (3, 4)}


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def later(monkeypatch):
    """Let two seconds pass."""
    monkeypatch.setattr(files.time, "time", lambda now=files.time.time: now() + 2)


def test_a_record_comes_back(tmp_path):
    write_record(tmp_path / "r", RECORD)
    assert read_record(tmp_path / "r") == {**RECORD, "e": [3, 4]}
    text = json.loads((tmp_path / "r").read_text())
    assert text["format"] == 3 and len(text["checksum"]) == 32


def test_keys_that_are_numbers_are_sealed_as_they_are_read(tmp_path):
    write_record(tmp_path / "r", {"a": {10: 1, 9: 2}})
    assert read_record(tmp_path / "r") == {"a": {"10": 1, "9": 2}}


def test_no_flip_of_a_record_changes_it_in_silence(tmp_path):
    path = tmp_path / "r"
    write_record(path, RECORD)
    whole, content = path.read_bytes(), read_record(path)
    rng = random.Random(0)
    noticed = 0
    for at in range(len(whole)):
        for value in {whole[at] ^ 1 << rng.randrange(8), rng.randrange(256)} - {whole[at]}:
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                assert read_record(path) == content  # such as another kind of white space
            except UserError as error:
                noticed += 1
                assert "\n" not in str(error)
    assert noticed > len(whole)


def test_names_of_files_that_are_no_text(tmp_path):
    with atomic_open(tmp_path / "page", "w") as file:
        file.write("∇ \udcff")
    assert (tmp_path / "page").read_bytes() == "∇ \\udcff".encode()
    write_record(tmp_path / "record", {"run": "\udcff"})
    assert read_record(tmp_path / "record") == {"run": "\udcff"}


def test_no_json_holds_nan(tmp_path):
    for write, value in ((write_json, float("nan")), (write_record, {"a": float("inf")})):
        with pytest.raises(ValueError):
            write(tmp_path / "r", value)
    assert not names(tmp_path)
    (tmp_path / "r").write_text("[NaN]")
    with pytest.raises(UserError, match="it holds NaN"):
        read_json(tmp_path / "r")


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "loop", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"cannot read|does not exist"):
            read_json(path)


@pytest.mark.parametrize(
    "value, form, message",
    [
        ({"a": 1}, {"a": int}, None),
        ({"a": 1}, {"a": float}, None),
        ({"a": True}, {"a": int}, "r: a is 'True' where int belongs"),
        ({"a": 1.0}, {"a": int}, "r: a is '1.0' where int belongs"),
        ({"a": None}, {"a": (str, type(None))}, None),
        ({"a": 1, "b": 2}, {"a": int}, None),
        ({"b": 2}, {"a": int}, "r has no 'a'"),
        ([], {"a": int}, r"r is '\[\]' where dict belongs"),
        ([1, "2"], [int], r"r\[1\] is '2' where int belongs"),
        ({"x": [1], "y": 1}, {str: [int]}, "r: y is '1' where list belongs"),
    ],
)
def test_form(value, form, message):
    if message is None:
        check_form(value, form, "r")
    else:
        with pytest.raises(UserError, match=message):
            check_form(value, form, "r")


def test_a_folder_is_held_by_one(tmp_path):
    out = tmp_path / "a" / "b"
    with locked(out):
        with pytest.raises(
            UserError, match=rf"b is already in use by process {os.getpid()} on .* since 2"
        ):
            locked(out).__enter__()
        assert names(out) == {".lock"}
    assert not names(tmp_path)  # made here, and left empty
    with locked(out):
        (out / "result").write_text("x")
    assert names(out) == {"result"}


def test_a_killed_process_holds_nothing(tmp_path):
    script = (
        "import os, signal, sys; from qgf.files import locked, atomic_open\n"
        "with locked(sys.argv[1]), atomic_open(sys.argv[1] + '/r') as file:\n"
        "    file.write(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path], env=dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2  # the lock's file and the temporary one
    with locked(tmp_path):
        assert names(tmp_path) == {".lock"}
    assert not names(tmp_path)


def test_a_lock_removed_by_its_last_holder_is_not_taken_for_held(tmp_path, monkeypatch):
    """Between opening the lock file and locking it, its holder ends and removes it."""
    real, first = files._flock, []

    def late(handle):
        if not first:
            first.append(handle)
            (tmp_path / ".lock").unlink()
        return real(handle)

    monkeypatch.setattr(files, "_flock", late)
    with locked(tmp_path), pytest.raises(UserError, match="already in use"):
        locked(tmp_path).__enter__()


def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch):
    def unsupported(handle, how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with locked(tmp_path), locked(tmp_path), atomic_open(tmp_path / "r") as file:
        file.write(b"1")
    assert names(tmp_path) == {"r"}


def test_sweeping_spares_what_is_being_written(later, tmp_path):
    (tmp_path / ".qgf-dead").write_text("x")
    (tmp_path / ".qgf-folder").mkdir()
    (tmp_path / ".qgf-folder" / "x").write_text("x")
    with atomic_open(tmp_path / "r", "w") as file:
        file.write("1")
        sweep(tmp_path)
    assert names(tmp_path) == {"r"}


def test_sweeping_spares_what_was_only_just_made(tmp_path):
    """A writer locks its file a moment after making it."""
    (tmp_path / ".qgf-new").write_text("x")
    sweep(tmp_path)
    assert names(tmp_path) == {".qgf-new"}


def test_a_retired_folder_is_gone_at_once(later, tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", lambda *a, **k: None)  # killed before it
        retire(tmp_path / "old")
    assert all(name.startswith(".qgf-") for name in names(tmp_path))
    sweep(tmp_path)
    assert not names(tmp_path)


def test_values_of_any_kind_come_back_and_older_ones_too(tmp_path):
    for value in ([[1.0, 0.0]], 2.5, {"ms": {"1": 2}}, None):
        write_value(tmp_path / "v", value)
        assert read_value(tmp_path / "v") == value
        write_json(tmp_path / "v", value)
        assert read_value(tmp_path / "v") == value
    write_value(tmp_path / "v", [1, 2])
    text = (tmp_path / "v").read_text()
    for old, new in (("1,", "3,"), ("value", "velue"), ("format", "formet"), ("checksum", "x")):
        (tmp_path / "v").write_text(text.replace(old, new))
        with pytest.raises(UserError, match="checksum"):
            read_value(tmp_path / "v")
