"""A run and a dataset that version 0.1.0 wrote: they load, act as they did, and go on."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import qgf
from qgf.data import load_manifest
from qgf.run import load_record, read_config, train

WRITTEN = Path(__file__).parent / "fixtures" / "version-0.1.0"


@pytest.fixture
def written(tmp_path):
    return shutil.copytree(WRITTEN, tmp_path / "written")


def test_a_run_of_version_0_1_0_acts_as_it_did(written):
    policy = qgf.load(written / "run", seed=5)
    obs = np.linspace(-1, 1, 2 * policy.spec.obs, dtype=np.float32).reshape(2, -1)
    for weight, actions in json.loads((written / "actions.json").read_text()).items():
        ours = policy.act(obs, key=jax.random.key(0), weight=float(weight))
        np.testing.assert_allclose(ours, actions, atol=1e-5)


def test_a_run_of_version_0_1_0_goes_on(written):
    record = load_record(written / "run")
    folder = Path(record["data"]["folder"])
    assert folder == written / "data" and load_manifest(folder).complete
    config = dataclasses.replace(read_config(record["config"]), steps=40)
    train(record["env"], folder, written / "run", config, seeds=(3, 5), resume=True)
    lines = (written / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [step for step in (10, 20, 20, 30, 40, 40) for _ in (3, 5)]
