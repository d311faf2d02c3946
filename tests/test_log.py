"""metrics.jsonl: what is read back, cut off, and said about damage."""

import random

import numpy as np
import pytest

from qgf.errors import UserError
from qgf.run._log import Log, metrics_writer, read_metrics, truncate_metrics


def logged(step):
    return Log({"train": step, "validation": step})


@pytest.fixture
def path(tmp_path):
    with metrics_writer(lambda values, step: None, tmp_path, (3, 5)) as log:
        for step in (10, 20, 30):
            for split in ("train", "validation"):
                log(split, step, {"loss": np.array([step / 7, -step])})
    return tmp_path / "metrics.jsonl"


def test_lines_come_back(path):
    lines = read_metrics(path, logged(30))
    assert [(line["step"], line["seed"], line["loss"]) for line in lines] == [
        (step, seed, loss)
        for step in (10, 20, 30)
        for seed, loss in ((3, step / 7), (5, -step)) * 2
    ]
    with open(path, "a") as file:
        file.write('{"step": 40')
    assert read_metrics(path, logged(30)) == lines


def test_truncation(path):
    whole = path.read_bytes().splitlines(keepends=True)
    truncate_metrics(path, logged(20))
    assert path.read_bytes() == b"".join(whole[:8])


def test_no_flip_of_a_line_changes_it_in_silence(path):
    whole, lines = path.read_bytes(), read_metrics(path, logged(30))
    rng = random.Random(0)
    noticed = 0
    for at in range(len(whole) - 1):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            read = read_metrics(path, logged(30))
            for ours, theirs in zip(read, lines, strict=True):  # the checksum's own name
                assert {k: ours.get(k) for k in theirs if k != "checksum"} == {
                    k: theirs[k] for k in theirs if k != "checksum"
                }
        except UserError as error:
            noticed += 1
            assert "is damaged; restore it, or delete the line" in str(error)
    assert noticed > 0.9 * len(whole)


def test_a_damaged_line_is_named_unless_the_resumed_run_writes_it_again(path):
    whole = path.read_bytes().splitlines(keepends=True)
    nothing = bytes(20) + b"\n"
    for lines, message in (
        ([whole[0], nothing, *whole[2:]], "line 2, is damaged"),
        ([*whole[:8], nothing, whole[9]], None),
        ([*whole[:8], nothing], None),
    ):
        path.write_bytes(b"".join(lines))
        if message:
            with pytest.raises(UserError, match=message):
                truncate_metrics(path, logged(20))
        else:
            truncate_metrics(path, logged(20))
            assert path.read_bytes() == b"".join(whole[:8])


def test_a_log_that_lost_its_end_is_not_gone_on_with(path):
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged in (lines[0], b"".join(lines[:7]), b"\xff\xfe\n", b""):
        path.write_bytes(damaged)
        for read in (truncate_metrics, read_metrics):
            with pytest.raises(UserError, match=r"lacks lines of step 20|line 1, is damaged"):
                read(path, logged(20))
        assert path.read_bytes() == damaged
    path.unlink()
    truncate_metrics(path, logged(20))
    assert path.read_bytes() == b""
