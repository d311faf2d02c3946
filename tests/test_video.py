import functools
import subprocess
import sys

import numpy as np
import pytest

from qgf import rollout, video
from qgf._workers import Workers
from qgf.checkpoint import load_learner, load_record
from qgf.config import Spec
from qgf.errors import UserError

SHAPE = "import imageio.v3 as i, sys; x = i.imread(sys.argv[1], plugin='FFMPEG'); print(x.shape)"


@pytest.fixture
def short(monkeypatch):
    """Episodes of at most 12 steps, in filming and evaluation."""
    for module in (video, rollout):
        monkeypatch.setattr(module, "Workers", functools.partial(Workers, max_episode_steps=12))


@pytest.fixture
def takes(monkeypatch):
    """What was filmed, as the pictures are joined."""
    kept = []
    join = video._side_by_side
    monkeypatch.setattr(video, "_side_by_side", lambda takes: kept.extend(takes) or join(takes))
    return kept


def film_or_skip(*args, **kwargs):
    try:
        video.film(*args, **kwargs)
    except UserError as error:
        if not str(error).startswith("cannot render"):
            raise
        pytest.skip(str(error))


def test_panels_show_the_evaluated_episode_from_one_start(run, tmp_path, short, takes):
    weights = (0.0, 50.0)
    film_or_skip(run, tmp_path / "film.mp4", weights, seed=4, episode=1)

    first = [take.pictures[0][video.CAPTION :] for take in takes]
    np.testing.assert_array_equal(*first)
    assert first[0].std() > 10
    last = [take.pictures[-1][video.CAPTION :] for take in takes]
    assert (last[0] != last[1]).any()

    jobs = [rollout.Job(rollout.Arm("qgf", w), 0, "test", 1) for w in weights]
    learners = {role: load_learner(run, role, seeds=[3]) for role in ("policy", "critic")}
    spec = Spec(**load_record(run)["spec"])
    outcomes = rollout.roll_out(load_record(run)["env"], spec, learners, jobs, 2, 2, 4)
    assert [take.length for take in takes] == [outcomes[job].length for job in jobs] == [12, 12]

    out = [sys.executable, "-c", SHAPE, str(tmp_path / "film.mp4")]
    shape = subprocess.run(out, capture_output=True, text=True, check=True).stdout
    pictures = 1 + 3  # at the start, and after 5, 10 and 12 steps
    size = (video.SIZE + video.CAPTION, 2 * (video.SIZE + video.GAP))
    assert shape.strip() == str((pictures, *size, 3))


def test_a_take_that_has_ended_keeps_its_last_picture():
    def take(count):
        pictures = [np.full((2, 2, 3), i, np.uint8) for i in range(count)]
        return video._Take(rollout.Job(rollout.Arm(), 0, "test", 0), pictures=pictures)

    joined = video._side_by_side([take(2), take(4)])
    assert joined.shape == (4, 2, 4, 3)
    assert joined[:, 0, 0, 0].tolist() == [0, 1, 1, 1]
    assert joined[:, 0, 2, 0].tolist() == [0, 1, 2, 3]


def test_no_rendering_is_explained_and_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(UserError, match=r"cannot render.*MUJOCO_GL=disable.*libEGL"):
        video.film(run, tmp_path / "film.mp4", (0.0,))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("weights", "episode", "match"),
    [((-1.0,), 0, "weight"), ((0.0,), -1, "episode"), ((), 0, "a weight")],
)
def test_bad_arguments(run, tmp_path, weights, episode, match):
    with pytest.raises(UserError, match=match):
        video.film(run, tmp_path / "film.mp4", weights, episode=episode)
