"""A set that LeRobot itself wrote (write_lerobot.py), and what can go wrong with such a folder."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from write_lerobot import FOLDER, LENGTHS, SOLVED, episodes

from qgf.data import Fields, held_out, missing_for_critic, open_recording
from qgf.errors import UserError

ROWS = "data/chunk-000/file-000.parquet"
ABOUT = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FOLDER, tmp_path / "set")


def change_info(folder, **changed):
    path = folder / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def change_rows(folder, change, file=ROWS):
    pq.write_table(change(pq.read_table(folder / file)), folder / file)


def without(folder, *names):
    """Take features out, as plain recording writes none of them."""
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    change_info(folder, features={n: f for n, f in features.items() if n not in names})
    change_rows(folder, lambda table: table.drop_columns([*names]))


def test_every_feature_is_what_was_written():
    obs = ("observation.pose", "observation.state", "observation.gripper")
    recording = open_recording(FOLDER)
    found = recording.trajectories(Fields(obs=obs))
    row = 0
    for number, episode in enumerate(episodes()):
        for step in range(LENGTHS[number]):
            expected = np.concatenate([episode[name][step].reshape(-1) for name in obs])
            np.testing.assert_array_equal(found.observation[row], expected)
            np.testing.assert_array_equal(found.action[row], episode["action"][step])
            assert found.reward[row] == episode["next.reward"][step, 0]
            assert found.success[row] == episode["next.success"][step, 0]
            assert not found.last[row]
            row += 1
        assert found.last[row] and found.unseen[row]
        np.testing.assert_array_equal(found.observation[row], found.observation[row - 1])
        row += 1
    assert row == len(found.last)
    assert recording.trajectories().observation.shape == (row, 4)
    assert sum(1 for path in recording.files if path.is_file()) == 3


def test_a_recording_that_stops_is_not_a_task_that_ends():
    """`next.done` marks every end; two of four episodes are solved there."""
    found = open_recording(FOLDER).trajectories()
    assert found.terminated[found.ends - 1].tolist() == [*SOLVED]
    assert found.terminated.sum() == sum(SOLVED)
    assert missing_for_critic(found)[0].startswith("the last observation of 2 episodes, which")


def test_done_alone_does_not_say_why(folder):
    without(folder, "next.success")
    recording = open_recording(folder)
    assert recording.trajectories().terminated is None
    assert recording.success is None


def test_plain_recording_has_no_rewards(folder):
    without(folder, "next.success", "next.done", "next.reward")
    recording = open_recording(folder)
    found = recording.trajectories()
    assert found.reward is None and found.terminated is None
    assert found.lengths.tolist() == [*LENGTHS]
    with pytest.raises(UserError, match=r"no rewards 'next.reward'.* could be: last-step"):
        recording.trajectories(Fields(reward="next.reward"))


def test_labels_of_whole_episodes(folder):
    without(folder, "next.success", "next.done", "next.reward")
    label = pa.array(SOLVED)
    change_rows(folder, lambda table: table.append_column("is_success", label), ABOUT)
    found = open_recording(folder).trajectories(Fields(reward="success"))
    assert found.success[found.ends - 1].tolist() == [*SOLVED]
    assert found.reward.sum() == found.terminated.sum() == sum(SOLVED)


def test_cameras_are_left_alone():
    recording = open_recording(FOLDER)
    with pytest.raises(UserError, match=r"observation.images.top cannot be used: .* camera"):
        recording.trajectories(Fields(obs=("observation.images.top",)))


def test_episodes_may_lie_in_several_files(folder):
    whole = open_recording(folder).trajectories()
    table = pq.read_table(folder / ROWS)
    pq.write_table(table.slice(0, 5), folder / ROWS)  # in the middle of the second episode
    pq.write_table(table.slice(5), folder / ROWS.replace("file-000", "file-001"))
    (folder / ROWS.replace("file-000", "file-001")).rename(
        folder / ROWS.replace("file-000", "file-1000")
    )
    (folder / ROWS).rename(folder / ROWS.replace("file-000", "file-101"))
    parts = open_recording(folder).trajectories()
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(parts.arrays()[name], array)


def test_splits(folder):
    assert held_out(open_recording(folder)).tolist() == [3]
    change_info(folder, splits={"train": "0:1", "val": "1:3"})
    assert held_out(open_recording(folder)).tolist() == [1, 2]


def replaced(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, values)


def test_folders_that_are_not_whole(folder):
    table = pq.read_table(folder / ROWS)
    rows = len(table)
    shuffled = table.take(pa.array([1, 0, *range(2, rows)]))
    short = pa.array([[0.0] * (2 if row == 3 else 4) for row in range(rows)])
    gaps = pa.array([[None if row == 3 else 0.0] * 3 for row in range(rows)])
    for change, said in [
        (lambda table: table.slice(0, 12), "holds 12 frames in 3 episodes, but its meta/info.json"),
        (lambda table: shuffled, "frames of an episode are not in their order"),
        (lambda table: table.drop_columns(["action"]), "has no column 'action', which"),
        (replaced("observation.state", short), "observation.state changes its shape"),
        (replaced("action", gaps), "action has 3 gaps"),
    ]:
        pq.write_table(change(table), folder / ROWS)
        with pytest.raises(UserError, match=said):
            open_recording(folder).trajectories()
    (folder / ROWS).write_bytes(b"PAR1 damaged")
    with pytest.raises(UserError, match=r"file-000.parquet cannot be read \("):
        open_recording(folder)
    (folder / ROWS).unlink()
    with pytest.raises(UserError, match="download it whole"):
        open_recording(folder)


def test_other_versions(folder):
    change_info(folder, codebase_version="v2.1")
    with pytest.raises(UserError, match=r"LeRobot's format v2.1; qgf reads v3.0"):
        open_recording(folder)
    (folder / "meta/info.json").write_text("{}")
    with pytest.raises(UserError, match="has no 'codebase_version'"):
        open_recording(folder)
