"""What is sent to TensorBoard and W&B, by stand-ins with their interfaces; when they refuse."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from qgf.errors import UserError
from qgf.run._log import metrics_writer, started

METRICS = {
    ("train", 10): {"loss": np.array([1.5, 2.5]), "policy/bc_loss": np.array([0.25, 0.75])},
    ("validation", 20): {"loss": np.array([3.5, 4.5])},
}
SENT = [
    (10, {"train/loss/seed3": 1.5, "train/policy/bc_loss/seed3": 0.25}),
    (10, {"train/loss/seed5": 2.5, "train/policy/bc_loss/seed5": 0.75}),
    (20, {"validation/loss/seed3": 3.5}),
    (20, {"validation/loss/seed5": 4.5}),
]


class WandbError(Exception):
    pass


@pytest.fixture
def wandb(monkeypatch):
    """Stand in for wandb: what is given to it is noted."""

    def init(**options):
        module.started = options
        return SimpleNamespace(
            log=lambda values, step: module.sent.append((step, values)),
            finish=lambda: setattr(module, "finished", True),
        )

    module = SimpleNamespace(
        init=init, errors=SimpleNamespace(Error=WandbError), sent=[], finished=False
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def tensorboard(monkeypatch):
    """Stand in for the parts of tensorboardX in use: every writer's path and events are noted."""

    class EventsWriter:
        def __init__(self, prefix):
            self.prefix, self.events, self.flushed, self.closed = prefix, [], 0, False
            writers.append(self)

        def write_event(self, event):
            self.events.append(event)

        def flush(self):
            self.flushed = len(self.events)

        def close(self):
            self.closed = True

    writers = []
    for name, content in {
        "tensorboardX": {},
        "tensorboardX.event_file_writer": {"EventsWriter": EventsWriter},
        "tensorboardX.proto": {},
        "tensorboardX.proto.event_pb2": {"Event": SimpleNamespace},
        "tensorboardX.summary": {"scalar": lambda name, value: (name, value)},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[], **content))
    return writers


def log_all(logger, out):
    with started(logger, out, {"env": "e"}) as send, metrics_writer(send, out, (3, 5)) as log:
        for (split, step), metrics in METRICS.items():
            log(split, step, metrics)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [(line["split"], line["step"], line["seed"], line["loss"]) for line in lines] == [
        *(("train", 10, 3, 1.5), ("train", 10, 5, 2.5)),
        *(("validation", 20, 3, 3.5), ("validation", 20, 5, 4.5)),
    ]


def test_wandb_gets_every_metric(wandb, tmp_path):
    log_all("wandb", tmp_path)
    assert wandb.sent == SENT and wandb.finished
    assert wandb.started == {
        "project": "qgf",
        "name": tmp_path.name,
        "dir": tmp_path,
        "config": {"env": "e"},
    }


def test_tensorboard_gets_every_metric(tensorboard, tmp_path):
    log_all("tensorboard", tmp_path)
    (writer,) = tensorboard
    assert writer.prefix == str(tmp_path / "tensorboard" / "events")
    assert [(event.step, event.summary) for event in writer.events] == [
        (step, item) for step, values in SENT for item in values.items()
    ]
    assert writer.flushed == len(writer.events) and writer.closed
    assert (tmp_path / "tensorboard").is_dir()


def test_no_logger_gets_nothing(tmp_path):
    log_all("none", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (WandbError("No API key configured.\nMore"), "wandb: No API key configured; --logger none"),
        (ValueError("1 validation error"), "wandb: 1 validation error; --logger none"),
        (OSError(28, "No space left on device"), "wandb: .*No space left on device; --logger none"),
    ],
)
def test_a_logger_that_does_not_start(error, message, wandb, tmp_path):
    def refuse(**options):
        raise error

    wandb.init = refuse
    with pytest.raises(UserError, match=message), started("wandb", tmp_path, {}):
        pytest.fail("it has not started")


def test_a_logger_that_fails_on_the_way(tensorboard, tmp_path):
    def full():
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(UserError, match=r"--logger tensorboard: .*No space left on device"),
        started("tensorboard", tmp_path, {}) as send,
    ):
        tensorboard[0].flush = full
        send({"x": 1.0}, 1)
    assert tensorboard[0].closed


def test_a_logger_ends_with_the_run_that_failed(wandb, tmp_path):
    with pytest.raises(ZeroDivisionError), started("wandb", tmp_path, {}):
        raise ZeroDivisionError
    assert wandb.finished
