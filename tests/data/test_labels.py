"""Labels of people: the file, what is paid by it, and the questions that write it."""

import json
import re
import shutil

import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from write_lerobot import FOLDER, LENGTHS, episodes

from qgf.cli import main
from qgf.data import Fields, from_arrays, open_recording
from qgf.data.labelling import cameras, contact_sheet, label_episodes, last_picture
from qgf.data.recorded import Recorded
from qgf.errors import UserError

ENDS = np.array([2, 5, 9])  # last actions of three episodes
GRAYS = (30, 90, 150, 210)


def recording(**more):
    rows = 10
    timeouts = np.isin(np.arange(rows), ENDS)
    observations = np.arange(rows * 2.0).reshape(rows, 2)
    return from_arrays(observations, np.zeros((rows, 1)), timeouts=timeouts, **more)


def labels(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return f"success-csv:{path}"


@pytest.mark.parametrize("yes, no", [("1", "0"), ("true", "False"), (" s", "f ")])
def test_the_last_action_of_a_labelled_success_earns_1_and_ends_the_task(tmp_path, yes, no):
    reward = labels(tmp_path, f"episode,success\n2,{yes}\n0,{yes}\n1,{no}\n")
    found = recording().trajectories(Fields(reward=reward))
    of_action = ~found.last
    assert found.reward[of_action].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    assert found.terminated[of_action].tolist() == [False, False, True, *[False] * 6, True]
    assert found.success[of_action].sum() == 2


def test_last_step_pays_every_episode():
    found = recording().trajectories(Fields(reward="last-step"))
    assert np.flatnonzero(found.reward[~found.last]).tolist() == ENDS.tolist()
    assert np.flatnonzero(found.terminated[~found.last]).tolist() == ENDS.tolist()


@pytest.mark.parametrize(
    "text, said",
    [
        ("episode,success\n0,1\n1,0\n", "nothing about episode 2 .*1 of 3 are without a label"),
        ("episode,success\n0,1\n3,0\n", "line 3: there is no episode '3'; .* 0 to 2"),
        ("episode,success\n-1,1\n", "there is no episode '-1'"),
        ("episode,success\n0,1\n0,0\n", "line 3: episode 0 has a label already"),
        ("episode,success\n0,maybe\n", "success of episode 0 is 'maybe'; write 1 or 0"),
        ("episode,success\n0\n", "success of episode 0 is ''"),
        ("number,success\n0,1\n", "no column 'episode'"),
        ("", "no column 'episode'"),
        ("episode,success\n\xff\x00", "no episode|no readable CSV"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        recording().trajectories(Fields(reward=labels(tmp_path, text)))


@pytest.mark.parametrize(
    "said, why",
    [("1,1,1", "all episodes succeed.*last-step"), ("0,0,0", "no episode succeeds.*data label")],
)
def test_a_critic_is_refused_where_all_or_none_succeed(tmp_path, said, why, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{episode},{one}\n" for episode, one in enumerate(said.split(",")))
    labels(tmp_path, f"episode,success\n{rows}")
    given = {"observations": np.zeros((10, 2)), "actions": np.zeros((10, 1))}
    np.savez("own.npz", **given, rewards=np.zeros(10), timeouts=np.isin(np.arange(10), ENDS))
    command = ["train", "--data", "own.npz", "--reward", "success-csv:labels.csv", "--out", "run"]
    with pytest.raises(SystemExit, match="2"):
        main(command)
    line = capsys.readouterr().err
    assert re.search(why, line) and line.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_run_knows_its_labels(tmp_path):
    """Other labels are other data: what was trained on them does not go on."""
    path = tmp_path / "own.npz"
    given = {"observations": np.zeros((10, 2)), "actions": np.zeros((10, 1))}
    np.savez(path, **given, rewards=np.zeros(10), timeouts=np.isin(np.arange(10), ENDS))
    fields = Fields(reward=labels(tmp_path, "episode,success\n0,1\n1,0\n2,1\n"))
    first = Recorded(path, fields).split("train")[0].sha256
    labels(tmp_path, "episode,success\n0,1\n1,1\n2,0\n")
    assert Recorded(path, fields).split("train")[0].sha256 != first


def test_questions_go_on_where_they_were_stopped(tmp_path):
    pictures = np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(6, 1).repeat(8, 2)
    own = recording(camera=np.repeat(pictures, 3, axis=3) * 20)
    (camera,) = cameras(own)
    np.testing.assert_array_equal(last_picture(own, camera)(1), np.full((6, 8, 3), 100))
    out, asked = tmp_path / "labels.csv", []

    def answering(answers):
        def ask(question):
            asked.append(question)
            if not answers:
                raise EOFError
            return answers.pop(0)

        return ask

    label_episodes(own, out, answering(["s", "?", "S", "b", "f", "q"]))
    assert out.read_text() == "episode,success\n0,1\n1,0\n"
    assert [q.split("episode ")[1][0] for q in asked] == ["0", "1", "1", "2", "1", "2"]
    assert label_episodes(own, out, answering(["s"])) == {0: True, 1: False, 2: True}
    assert asked[-1].split("episode ")[1].startswith("2 of 3")
    sheet = np.asarray(Image.open(out.with_suffix(".png")))
    assert sheet.shape == (120, 480, 3)  # three pictures of 8 x 6, 160 wide
    assert sheet[110, [150, 310, 470]].tolist() == [[40] * 3, [100] * 3, [180] * 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.csv", "labels.png"]


def test_a_recording_without_pictures(tmp_path):
    with pytest.raises(UserError, match=r"has no pictures; write .* by hand"):
        label_episodes(recording(), tmp_path / "labels.csv", input)


def test_lerobots_pictures():
    own = open_recording(FOLDER)
    assert cameras(own) == ("observation.images.top",)
    for number, episode in enumerate(episodes()):
        np.testing.assert_array_equal(
            last_picture(own, "observation.images.top")(number),
            episode["observation.images.top"][-1],
        )
    with pytest.raises(UserError, match=r"has no camera 'wrist'; it has observation.images.top"):
        contact_sheet(own, "wrist")


def test_lerobots_videos(tmp_path):
    """The picture before an episode's end: each episode ends in a gray of its own."""
    folder = shutil.copytree(FOLDER, tmp_path / "set")
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["observation.images.top"]["dtype"] = "video"
    (folder / "meta/info.json").write_text(json.dumps(info))
    file = folder / "videos/observation.images.top/chunk-000/file-000.mp4"
    file.parent.mkdir(parents=True)
    writer = imageio_ffmpeg.write_frames(str(file), (32, 32), fps=info["fps"], macro_block_size=1)
    writer.send(None)
    for gray, length in zip(GRAYS, LENGTHS, strict=True):
        for step in range(length):
            writer.send(np.full((32, 32, 3), gray if step == length - 1 else 255, np.uint8))
    writer.close()
    about = folder / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(about)
    ends = np.cumsum(LENGTHS) / info["fps"]
    more = {"chunk_index": [0] * 4, "file_index": [0] * 4, "to_timestamp": ends}
    for name, values in more.items():
        table = table.append_column(f"videos/observation.images.top/{name}", pa.array(values))
    pq.write_table(table, about)
    read = last_picture(open_recording(folder), "observation.images.top")
    assert [round(float(read(n).mean()), -1) for n in range(4)] == [*GRAYS]
    file.unlink()
    with pytest.raises(UserError, match="download the data set's videos too"):
        read(0)
