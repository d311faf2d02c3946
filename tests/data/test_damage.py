"""Files of every format, damaged: what cannot be read is told in one line."""

import random
import shutil

import h5py
import numpy as np
import pytest
from write_lerobot import FOLDER as LEROBOT

from qgf.data import Fields, convert, from_arrays, inspect, open_recording
from qgf.errors import UserError

DAMAGES = 40


def arrays():
    ends = np.arange(12) % 4 == 3
    rng = np.random.default_rng(4)
    return {
        "observations": rng.normal(size=(12, 3)),
        "actions": rng.normal(size=(12, 2)),
        "rewards": rng.normal(size=12),
        "terminals": ends & False,
        "timeouts": ends,
    }


def write_npz(path):
    np.savez(path, **arrays())


def write_hdf5(path):
    with h5py.File(path, "w") as file:
        for name, array in arrays().items():
            file[name] = array


def write_demos(path):
    with h5py.File(path, "w") as file:
        for name in ("data/demo_0", "data/demo_1"):
            for field, array in arrays().items():
                file.create_dataset(f"{name}/{field}", data=array, compression="gzip")
            file[f"{name}/obs/x"] = arrays()["observations"]


def write_own(path):
    convert(from_arrays(**arrays()), Fields(), path)


def write_lerobot(path):
    shutil.copytree(LEROBOT, path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("d4rl.npz", write_npz),
        ("d4rl.hdf5", write_hdf5),
        ("demos.hdf5", write_demos),
        ("own", write_own),
        ("lerobot", write_lerobot),
    ],
)
def test_damage_is_told_in_one_line(name, write, tmp_path):
    """Flipped bits and cut files give what they give, or a UserError; nothing else is raised."""
    path = tmp_path / name
    write(path)
    inspect(open_recording(path))
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*.*") if p.is_file())
    choose = random.Random(name)
    told = 0
    for _ in range(DAMAGES):
        file = choose.choice(files)
        content = file.read_bytes()
        damaged = bytearray(content)
        if choose.random() < 0.3:
            del damaged[choose.randrange(len(damaged)) :]
        else:
            for _ in range(choose.choice([1, 4, 32])):
                damaged[choose.randrange(len(damaged))] ^= 1 << choose.randrange(8)
        file.write_bytes(damaged)
        try:
            inspect(open_recording(path))
        except UserError as error:
            told += 1
            assert "\n" not in str(error)
        file.write_bytes(content)
    assert told > DAMAGES / 8


def test_a_data_set_that_claims_more_than_it_keeps(tmp_path):
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        for name, array in arrays().items():
            if name != "rewards":
                file[name] = array
        file.create_dataset("rewards", (10**12,), "f4", chunks=(1000,))
    with pytest.raises(UserError, match=r"claims 4,000,000,000,000 bytes for /rewards"):
        open_recording(tmp_path / "d.hdf5")
