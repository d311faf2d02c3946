import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest

from qgf.act import rollout
from qgf.act.rollout import Arm, Job
from qgf.config import Spec
from qgf.errors import UserError
from qgf.reports import video
from qgf.run.checkpoint import load_learner, load_record
from qgf.tasks import find_task
from qgf.tasks._workers import Workers

SHAPE = "import imageio.v3 as i, sys; x = i.imread(sys.argv[1], plugin='FFMPEG'); print(x.shape)"


class Recording(Workers):
    """Episodes of at most 12 steps, whose actions are kept."""

    actions: ClassVar[list] = []

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs, max_episode_steps=12)

    def request(self, requests):
        self.actions += [requests[i][1] for i in sorted(requests) if requests[i][0] == "act"]
        return super().request(requests)


@pytest.fixture
def short(monkeypatch):
    for module in (video, rollout):
        monkeypatch.setattr(module, "Workers", Recording)
    Recording.actions.clear()


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


def test_panels_show_the_evaluated_episode_from_one_start(
    run, other_critic, tmp_path, short, takes
):
    arms = [Arm(), Arm("qgf", 50.0), Arm("bfn", 0.0, 3), Arm("gradstep", 0.5)]
    networks = {"checkpoint": "20", "critic": other_critic, "critic_checkpoint": "40"}
    film_or_skip(run, tmp_path / "film.mp4", [*arms, arms[0]], seed=4, episode=1, **networks)

    first = [take.pictures[0][video.CAPTION :] for take in takes]
    assert len(first) == 4 and all((picture == first[0]).all() for picture in first)
    assert first[0].std() > 10
    last = [take.pictures[-1][video.CAPTION :] for take in takes]
    assert (last[0] != last[1]).any()

    filmed = Recording.actions[:]
    Recording.actions.clear()
    jobs = [Job(arm, 0, "test", 1) for arm in arms]
    learners = {
        "policy": load_learner(run, "policy", which="20", seeds=[3]),
        "critic": load_learner(other_critic, "critic", seeds=[3]),
    }
    record = load_record(run)
    rollout.roll_out(find_task(record["env"]), Spec(**record["spec"]), learners, jobs, 1, 4, 4)
    # The film shows all arms at a time, the evaluation plays one after another.
    assert len(filmed) == len(Recording.actions) == 4 * 3
    turns = np.array(filmed).reshape(3, 4, 5, 5).swapaxes(0, 1)
    np.testing.assert_allclose(turns, np.array(Recording.actions).reshape(4, 3, 5, 5), atol=1e-4)
    assert len({turn[0].tobytes() for turn in turns}) == 4
    assert [take.length for take in takes] == [12] * 4

    out = [sys.executable, "-c", SHAPE, str(tmp_path / "film.mp4")]
    shape = subprocess.run(out, capture_output=True, text=True, check=True).stdout
    pictures = 1 + 3  # at the start, and after 5, 10 and 12 steps
    size = (320 + video.CAPTION, 4 * (320 + video.GAP))
    assert shape.strip() == str((pictures, *size, 3))


def test_a_take_that_has_ended_keeps_its_last_picture():
    def take(count):
        pictures = [np.full((2, 2, 3), i, np.uint8) for i in range(count)]
        return video._Take(Job(Arm(), 0, "test", 0), pictures=pictures)

    joined = video._side_by_side([take(2), take(4)])
    assert joined.shape == (4, 2, 4, 3)
    assert joined[:, 0, 0, 0].tolist() == [0, 1, 1, 1]
    assert joined[:, 0, 2, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("backend", ["disable", "nonsense"])
def test_no_rendering_is_explained_and_leaves_nothing(backend, run, tmp_path, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", backend)
    for refused in (
        lambda: video.film(run, tmp_path / "film.mp4", [Arm()]),
        lambda: video.check_filming(load_record(run)["env"], tmp_path / "film.mp4"),
    ):
        with pytest.raises(UserError, match=rf"cannot render.*MUJOCO_GL={backend}.*libEGL"):
            refused()
    assert list(tmp_path.iterdir()) == []


def test_a_backend_that_is_not_there_stops_no_evaluation_without_a_line(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with (
        Workers(find_task("cube-single-v0"), 1, 1) as pool,
        pytest.raises(UserError, match="MuJoCo does not start with MUJOCO_GL=nonsense"),
    ):
        pool.request({0: ("reset", {"seed": 0})})


@pytest.mark.parametrize(
    ("arms", "episode", "match"),
    [([Arm("qgf", -1.0)], 0, "weight"), ([Arm()], -1, "episode"), ([], 0, "an arm")],
)
def test_bad_arguments(run, tmp_path, arms, episode, match):
    with pytest.raises(UserError, match=match):
        video.film(run, tmp_path / "film.mp4", arms, episode=episode)


FACTORY = """
import gymnasium, numpy as np

class Bare(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def render(self):
        return np.full((33, 41, 3), 90, np.uint8) if self.render_mode else None

def deaf(**kwargs):
    return Bare()
"""


def test_any_environment_that_renders_is_filmed(tmp_path, monkeypatch):
    (tmp_path / "my_films.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    video.check_filming("my_films:Bare", tmp_path / "film.mp4")
    with pytest.raises(UserError, match=r"renders no RGB images; its factory must pass"):
        video.check_filming("my_films:deaf", tmp_path / "film.mp4")
    with pytest.raises(UserError, match="there is no environment to run"):
        video.check_filming("none", tmp_path / "film.mp4")
    making, rendering = find_task("my_films:Bare").filmed
    with Workers(find_task("my_films:Bare"), 1, 1, **making) as pool:
        _, pictures = video._request(pool, rendering, {0: ("reset", {})})
    assert pictures[0].shape == (32, 40, 3) and (pictures[0] == 90).all()
