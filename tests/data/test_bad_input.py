"""Every kind of bad input in every format: told in one line, or read as the same numbers."""

import itertools
import shutil
from collections.abc import Callable
from typing import NamedTuple

import h5py
import numpy as np
import pytest
from layouts import LAYOUTS, LENGTHS, episodes, flat

import qgf
from qgf.cli import main
from qgf.data import READERS, Fields, Recording, from_arrays, open_recording
from qgf.data.recorded import Recorded
from qgf.errors import UserError

SAME = "the same numbers"
LENGTH = "the same lengths: what ends an episode is not a mark"
NEVER = None  # a file that its format cannot have

TABLES = ("minari arrow", "lerobot")  # all columns of a table are equally long
FLAT = ("ogbench", "d4rl npz", "d4rl hdf5", "memory", "qgf")  # rows of all episodes in one array


class Case(NamedTuple):
    """What is done to good episodes, and what comes of it.

    Attributes:
        said: what is said in every format, with its names of the fields; SAME or LENGTH.
        edit: changes the episodes.
        but: what comes of it in some formats instead, or NEVER.
        asked: --obs, --action and --reward, where they are not left out.
    """

    said: str
    edit: Callable[[list[dict]], object] = lambda episodes: None
    but: dict[str, str | None] = {}  # noqa: RUF012
    asked: dict[str, str] = {}  # noqa: RUF012


def second(field, change):
    """Change a field of the second episode."""
    return lambda episodes: episodes[1].update({field: change(episodes[1][field])})


def every(field, change):
    return lambda episodes: [e.update({field: change(e[field])}) for e in episodes]


def put(value):
    """Put a value into the second row."""

    def change(array):
        array[1] = value
        return array

    return change


def wider(array):
    return np.pad(array, ((0, 0), (0, 1)))


def column(array):
    return array[:, None]


def of_type(kind):
    return lambda array: array.astype(kind)


def unmarked(episodes):
    for e in episodes:
        e.update(terminal=e["terminal"] & False, timeout=e["timeout"] & False)


def follows(change):
    """Change what came after the actions, where it is a field of its own."""
    return lambda episodes: [e.update(next=change(e["obs"][1:])) for e in episodes]


def only(*names, other=NEVER):
    return {name: other for name in LAYOUTS if name not in names}


def these(*names, said=NEVER):
    return dict.fromkeys(names, said)


OBJECTS = "cannot be used: it is of objects, as rows of different shapes are"
FIELDS = {"obs": "{obs}", "action": "{action}", "reward": "{reward}"}

CASES = {
    "no such obs": Case("no field '{obs}_'. Did you mean '{obs}'", asked={"obs": "{obs}_"}),
    "no such action": Case(
        "no field '{action}_'. Did you mean '{action}'", asked={"action": "{action}_"}
    ),
    "no such reward": Case(
        "no rewards '{reward}_'. Did you mean '{reward}'", asked={"reward": "{reward}_"}
    ),
    **{
        f"too few rows of {field}": Case(
            "has fields of different lengths",
            second(field, lambda array: array[:-1]),
            these(*TABLES),
        )
        for field in FIELDS
    },
    **{
        f"{field} gets wider": Case(
            f"{name} changes its shape: ({width},) in ",
            second(field, wider),
            these(*FLAT, said=f"{name} {OBJECTS}") | {"qgf": f"{name} changes its shape: () in "},
        )
        for field, name, width in (("obs", "{obs}", 3), ("action", "{action}", 2))
    },
    "other width after actions": Case(
        "{obs} has rows of shape (3,), but what followed them is of shape (4,)",
        follows(wider),
        only("d4rl npz", "d4rl hdf5", "memory", "robomimic"),
    ),
    "text after actions": Case(
        "{obs} has rows of shape (3,), but what followed them is of shape (3,) and |S9",
        follows(of_type("S9")),
        only("d4rl npz", "d4rl hdf5", "memory", "robomimic"),
    ),
    **{
        f"{value} in {field}": Case(
            f"has NaN or infinity in {name}, first in row 1 of episode 1; mend or remove that",
            second(field, put(value)),
        )
        for (field, name), value in itertools.product(FIELDS.items(), (np.nan, -np.inf))
    },
    "beyond float32": Case(
        "has numbers too large for float32 in {obs}, first in row 1 of episode 1",
        lambda episodes: [
            every("obs", of_type(float))(episodes),
            second("obs", put(1e39))(episodes),
        ],
    ),
    **{
        f"{field} of {kind}": Case(
            SAME, every(field, of_type(kind)), these(*TABLES) if kind[0] == ">" else {}
        )
        for field, kind in itertools.product(FIELDS, ("f8", "f2", ">f4", ">i2", "u1", "i8"))
    },
    **{
        f"{field} in Fortran's order": Case(SAME, every(field, np.asfortranarray), these(*TABLES))
        for field in ("obs", "action")
    },
    "bool actions": Case(
        "{action} is of bool; an action must be an amount", every("action", of_type(bool))
    ),
    **{
        f"{field} of text": Case(
            f"{name} cannot be used: it is of text",
            every(field, of_type("S9")),
            these(*TABLES, said=f"{name} cannot be used: it is of ")
            | ({"robomimic": "rewards of type |S9"} if field == "reward" else {}),
        )
        for field, name in FIELDS.items()
    },
    "rewards as a column": Case(SAME, every("reward", column)),
    "marks as a column": Case(
        SAME, lambda episodes: [every(m, column)(episodes) for m in ("terminal", "timeout")]
    ),
    "complex obs": Case(
        "{obs} cannot be used: it is of complex numbers",
        every("obs", of_type("c8")),
        these(*TABLES),
    ),
    "obs without numbers": Case(
        "{obs} cannot be used: it is empty", every("obs", lambda array: array[:, :0])
    ),
    "no marks of ends": Case(
        LENGTH,
        unmarked,
        {
            "ogbench": "no mark of an end of an episode in its terminals; mark the last row",
            **these(
                *("d4rl npz", "d4rl hdf5", "memory"),
                said="no mark of an end of an episode in terminals or timeouts; mark the last",
            ),
            "qgf": "has 0 episode(s), so there are none for train",
        },
    ),
    "one episode": Case(
        "1 episode(s), so there are none for ",
        lambda episodes: episodes.__delitem__(slice(1, None)),
    ),
}
TAKEN = [
    pytest.param(case, name, id=f"{case}: {name}")
    for case, name in itertools.product(CASES, LAYOUTS)
    if CASES[case].but.get(name, "") is not NEVER
]


def test_every_format_is_in_the_table():
    assert {layout.reader for layout in LAYOUTS.values()} == READERS.keys()
    assert all(case.but.keys() <= LAYOUTS.keys() for case in CASES.values())


@pytest.fixture
def refused(capsys, tmp_path):
    """Train on data that cannot be used: one line, code 2, and nothing is written."""

    def refused(data, **asked):
        if isinstance(data, Recording):
            fields = Fields(**{k: (v,) if k == "obs" else v for k, v in asked.items()})
            with pytest.raises(UserError) as told:
                qgf.train("none", data, tmp_path / "out", qgf.Config(), fields=fields)
            line = str(told.value)
        else:
            words = [word for name, value in asked.items() for word in (f"--{name}", value)]
            capsys.readouterr()
            with pytest.raises(SystemExit) as stop:
                main(["train", "--data", str(data), "--out", str(tmp_path / "out"), *words])
            printed = capsys.readouterr()
            assert stop.value.code == 2 and printed.out == ""
            assert printed.err.startswith("qgf: ")
            line = printed.err.removesuffix("\n")
        assert "\n" not in line
        assert not (tmp_path / "out").exists()
        return line

    return refused


def opened(data):
    return data if isinstance(data, Recording) else open_recording(data)


@pytest.mark.parametrize(("case", "name"), TAKEN)
def test_bad_fields(case, name, refused, tmp_path):
    (tmp_path / "in").mkdir()
    case, layout = CASES[case], LAYOUTS[name]
    said = case.but.get(name, case.said)
    edited = episodes()
    case.edit(edited)
    names = layout._asdict()
    if said in (SAME, LENGTH):
        found = opened(layout.write(tmp_path / "in", edited)).trajectories()
        assert found.lengths.tolist() == [*LENGTHS]
        (tmp_path / "good").mkdir()
        good = opened(layout.write(tmp_path / "good", episodes())).trajectories()
        for array, expected in good.arrays().items() if said == SAME else ():
            np.testing.assert_array_equal(found.arrays()[array], expected)
            assert found.arrays()[array].dtype == expected.dtype
        return
    try:
        data = layout.write(tmp_path / "in", edited)
    except UserError as error:  # of arrays in memory
        assert name == "memory" and said.format(**names) in str(error)
        return
    asked = {option: value.format(**names) for option, value in case.asked.items()}
    assert said.format(**names) in refused(data, **asked)


@pytest.mark.parametrize("name", LAYOUTS)
def test_rewards_that_are_all_equal(name, tmp_path, capsys):
    """A warning: behaviour cloning needs none."""
    (tmp_path / "in").mkdir()
    edited = episodes()
    every("reward", lambda array: 0 * array)(edited)
    data = LAYOUTS[name].write(tmp_path / "in", edited)
    warning = "all rewards are equal (0): a critic learns nothing from them"
    if name != "memory":
        assert warning in Recorded(data, Fields()).rewards
        return
    config = qgf.Config(steps=1, batch_size=2, width=2, depth=1, chunk=2)
    qgf.train("none", data, tmp_path / "out", config, method="bc")
    assert f"rewards: reward; {warning}" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out/data").iterdir()]


def test_lists_that_are_no_array(refused):
    good = flat(episodes())
    ragged = [[1.0, 2.0]] * 11 + [[1.0]]
    with pytest.raises(UserError, match="actions cannot be made an array: setting an array"):
        from_arrays(**{**good, "actions": ragged})
    assert "no observations" not in refused(from_arrays(**good), obs="x")


def test_what_came_after_keeps_its_numbers():
    """Also where observations are of a smaller type."""
    good = flat(episodes())
    after = good["next_observations"] + 0.5
    found = from_arrays(
        **{**good, "observations": good["observations"].astype("u1"), "next_observations": after}
    ).trajectories()
    np.testing.assert_array_equal(found.observation[found.ends], after[np.cumsum(LENGTHS) - 1])


def written(name, file=None, content=None):
    """Write a good set in a format, and then another content into one of its files."""

    def write(folder):
        path = LAYOUTS[name].write(folder, episodes())
        if file == "":
            path.write_bytes(path.read_bytes()[:400])
        elif content is not None:
            (folder / file).write_bytes(content)
        return path

    return write


def renamed(name, ending):
    return lambda folder: shutil.move(
        LAYOUTS[name].write(folder, episodes()), folder / f"renamed{ending}"
    )


def holding(name, content=b""):
    def write(folder):
        (folder / name).write_bytes(content)
        return folder / name

    return write


def arrays(**changed):
    """An npz file of D4RL's arrays, but for those that are changed or None."""

    def write(folder):
        found = {**flat(episodes()), **changed}
        np.savez(folder / "a.npz", **{n: a for n, a in found.items() if a is not None})
        return folder / "a.npz"

    return write


def hdf5(*names):
    def write(folder):
        with h5py.File(folder / "a.hdf5", "w") as file:
            for name in names:
                file[name] = np.zeros(3)
        return folder / "a.hdf5"

    return write


TEXT = b"step,x\n1,2\n"
UNKNOWN = "is of no format that qgf reads"
DAMAGED = "; it is damaged or cut off: get it again"
FILES = {
    "nothing there": (lambda folder: folder / "none", "none does not exist"),
    "nothing there, with a format": (lambda folder: f"d4rl:{folder}/none", "none does not exist"),
    "an empty folder": (lambda folder: folder, "it holds nothing that qgf knows"),
    "a folder of a file": (lambda f: written("d4rl npz")(f).parent, "it holds data.npz"),
    **{
        f"{what} called {ending}": (holding(f"a{ending}", content), f"its name says: it {said}")
        for ending in (".npz", ".hdf5", ".h5", ".parquet", ".arrow")
        for what, content, said in (
            ("text", TEXT, "begins like no format of arrays; get it again"),
            ("nothing", b"", "is empty; get it again"),
        )
    },
    "text": (holding("a.csv", TEXT), UNKNOWN),
    "nothing": (holding("a"), UNKNOWN),
    "npz called HDF5": (renamed("d4rl npz", ".hdf5"), "is not HDF5, as its name says: it is npz"),
    "HDF5 called npz": (renamed("d4rl hdf5", ".npz"), "as its name says: it is HDF5; rename it"),
    "cut npz": (written("d4rl npz", ""), DAMAGED),
    "cut ogbench": (written("ogbench", ""), DAMAGED),
    "cut HDF5": (written("d4rl hdf5", ""), DAMAGED),
    "cut robomimic": (written("robomimic", ""), DAMAGED),
    "ogbench, text beside it": (written("ogbench", "data-val.npz", TEXT), DAMAGED),
    "minari, text as HDF5": (written("minari hdf5", "data/main_data.hdf5", TEXT), DAMAGED),
    "minari, text as Arrow": (written("minari arrow", "data/1/part-0.arrow", TEXT), DAMAGED),
    "minari, text as JSON": (written("minari arrow", "data/metadata.json", TEXT), "readable JSON"),
    "lerobot, text as Parquet": (
        written("lerobot", "data/chunk-000/file-000.parquet", TEXT),
        DAMAGED,
    ),
    "lerobot, text as JSON": (written("lerobot", "meta/info.json", TEXT), "readable JSON"),
    "qgf, text as npz": (written("qgf", "train.npz", TEXT), "differs from what trajectories.json"),
    "qgf, text as JSON": (written("qgf", "trajectories.json", TEXT), "readable JSON"),
    "unknown arrays": (
        arrays(observations=None, seen=np.zeros(3)),
        "it holds actions, next_observations, rewards, seen, terminals, timeouts",
    ),
    "unknown groups": (hdf5("x/y"), "robomimic: HDF5 with data/demo_0); it holds x/y"),
    "empty HDF5": (hdf5(), UNKNOWN),
    "an array as a demo": (hdf5("data/demo_0"), "has no actions in data/demo_0"),
    "an array as an episode": (
        lambda f: shutil.move(hdf5("episode_0")(f), f / "main_data.hdf5"),
        "has no rewards in episode_0",
    ),
    "no array of marks": (
        arrays(terminals=None, timeouts=None),
        "no mark of an end of an episode in terminals or timeouts",
    ),
    "neither marks nor rewards": (
        arrays(terminals=None, timeouts=None, rewards=None),
        "no mark of an end of an episode in terminals or timeouts",
    ),
    "another format named": (
        lambda folder: f"lerobot:{written('d4rl npz')(folder)}",
        f"{UNKNOWN} (lerobot: a folder with meta/info.json)",
    ),
    "two formats fit": (
        arrays(timeouts=None, terminals=np.arange(12) == 11),
        "say which it is: ogbench:",
    ),
}


@pytest.mark.parametrize(("write", "said"), FILES.values(), ids=FILES)
def test_bad_files(write, said, refused, tmp_path):
    (tmp_path / "in").mkdir()
    assert said in refused(write(tmp_path / "in"))


def test_arrays_without_terminals_are_read(tmp_path):
    """Timeouts alone say where episodes end."""
    found = open_recording(arrays(terminals=None, timeouts=np.arange(12) % 4 == 3)(tmp_path))
    assert found.lengths.tolist() == [4, 4, 4] and found.terminated is None
