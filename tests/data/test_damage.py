"""Files of every format, damaged: what cannot be read is told in one line."""

import random

import h5py
import pytest
from layouts import LAYOUTS, episodes, flat

from qgf.data import inspect, open_recording
from qgf.errors import UserError

DAMAGES = 40


@pytest.mark.parametrize("name", sorted(LAYOUTS.keys() - {"memory"}))
def test_damage_is_told_in_one_line(name, tmp_path):
    """Flipped bits and cut files give what they give, or a UserError; nothing else is raised."""
    path = LAYOUTS[name].write(tmp_path, episodes())
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
        for name, array in flat(episodes()).items():
            if name != "rewards":
                file[name] = array
        file.create_dataset("rewards", (10**12,), "f4", chunks=(1000,))
    with pytest.raises(UserError, match=r"claims 4,000,000,000,000 bytes for /rewards"):
        open_recording(tmp_path / "d.hdf5")
