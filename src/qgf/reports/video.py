"""Film the same test episode under several methods and weights, side by side, as mp4."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from qgf._progress import progress
from qgf.act.policy import load_learners
from qgf.act.rollout import Arm, Job, actor, start_of
from qgf.config import Spec
from qgf.core.flow import refuse_failed
from qgf.data.normalization import Normalization
from qgf.errors import UserError
from qgf.evaluation._evaluate import checked_weights, label
from qgf.files import atomic_open, check_writable
from qgf.methods.table import Learners
from qgf.run import task_of
from qgf.run.checkpoint import load_record
from qgf.tasks import Task, find_task
from qgf.tasks._workers import Reply, Workers

CAPTION, GAP = 32, 4
STEPS_PER_SECOND = 20

Picture = UInt8[np.ndarray, "_ _ 3"]


@dataclass
class _Take:
    """One arm's episode as it is filmed: a picture at its start and after every chunk."""

    job: Job
    length: int = 0
    pictures: list[Picture] = field(default_factory=list)

    def add(self, reply: Reply, picture: Picture) -> None:
        self.length += reply.length
        arm = self.job.arm
        solved = {True: "solved", False: "not solved", None: "ended"}[reply.success]
        end = solved if reply.done else ""
        name = label(str(arm.method), arm.weight, arm.samples)
        self.pictures.append(_captioned(picture, name, f"step {self.length}", end))


def check_filming(env: str, out: Path) -> None:
    """Raise the UserError that `film` would raise because of this machine or of `out`."""
    check_writable(out)
    _encoder()
    task = find_task(env)
    making, rendering = _filmed(task)
    with _headless(), Workers(task, 1, 1, **making) as pool:
        _request(pool, rendering, {0: ("reset", {"seed": 0})})


def film(
    run: Path,
    out: Path,
    arms: Sequence[Arm],
    *,
    critic: Path | None = None,
    seed: int = 0,
    episode: int = 0,
    checkpoint: str = "last",
    critic_checkpoint: str = "last",
) -> None:
    """Write an mp4 of one test episode per arm, all from the same start and noise.

    The episode is one that `qgf eval` with the same seed runs, with the run's first training
    seed. There is a picture for every action chunk, played in real time; an episode that has
    ended keeps its last picture.

    Args:
        run: folder of the run.
        out: the mp4 file.
        arms: methods (by name), weights and numbers of samples, from left to right; repeated
            ones are filmed once.
        critic: another run, whose critic takes the place of this run's own.
        seed: of the evaluation.
        episode: number of the test episode, from 0.
        checkpoint: "last" or a step's number.
        critic_checkpoint: the same, of `critic`.

    Raises:
        UserError: no such run, critic or checkpoint, a bad weight or episode, `out` cannot be
            written, or this machine cannot render.
    """
    checked_weights([arm.weight for arm in arms])
    if not arms or episode < 0:
        raise UserError(f"to film, give an arm and an episode of at least 0, got {episode}")
    record = load_record(run)
    judge = record if critic is None else load_record(critic)
    spec = Spec(**judge["spec"])
    learners = load_learners(
        run,
        list(dict.fromkeys(str(arm.method) for arm in arms)),
        which=checkpoint,
        seeds=record["seeds"][:1],
        critic=critic,
        critic_which=critic_checkpoint,
    )
    takes = [_Take(Job(arm, 0, "test", episode)) for arm in dict.fromkeys(arms)]
    _shoot(task_of(judge), spec, learners, takes, seed, Normalization.of(record))
    film = _encode(_side_by_side(takes), STEPS_PER_SECOND / spec.chunk)
    with atomic_open(out) as file:
        file.write(film)


def _filmed(task: Task) -> tuple[dict, dict]:
    if task.filmed is None:
        raise UserError(task.unjudged)
    return task.filmed


def _shoot(
    task: Task,
    spec: Spec,
    learners: Learners,
    takes: Sequence[_Take],
    seed: int,
    scale: Normalization,
) -> None:
    """Run all takes at a time, each in an environment process of its own."""
    count, (making, rendering) = len(takes), _filmed(task)
    ways = [take.job.arm.unweighted for take in takes]
    acts = {way: actor(way, learners, spec, seed) for way in ways}
    start = np.array([[take.job.start for take in takes]], np.int32)
    weight = np.array([[take.job.arm.weight for take in takes]], np.float32)
    obs = np.zeros((1, count, spec.obs), np.float32)
    turn = np.zeros((1, count), np.int32)
    goal = np.zeros((1, count, spec.goal), np.float32) if spec.goal else None
    requests = {i: ("reset", start_of(take.job, task, spec, seed)) for i, take in enumerate(takes)}
    workers = min(count, os.cpu_count() or 1)
    with (
        _headless(),
        Workers(task, count, workers, **making) as pool,
        progress() as bar,
    ):
        shown = bar.add_task("filming", total=None, unit="pictures")
        while requests:
            replies, pictures = _request(pool, rendering, requests)
            for i, reply in replies.items():
                obs[0, i] = scale.observed(reply.obs)
                if goal is not None and reply.length == 0:
                    goal[0, i] = reply.goal
                takes[i].add(reply, pictures[i])
            bar.advance(shown, len(pictures))
            # Every way acts for all takes, of which only its own are carried out.
            each = {way: act(obs, goal, weight, start, turn) for way, act in acts.items()}
            actions, counts = (
                np.stack([np.asarray(each[way][part][0, i]) for i, way in enumerate(ways)])
                for part in (0, 1)
            )
            refuse_failed(counts)
            chunks = scale.acted(actions.reshape(count, spec.chunk, spec.action))
            requests = {i: ("act", chunks[i]) for i, r in replies.items() if not r.done}
            turn += 1


@contextlib.contextmanager
def _headless() -> Iterator[None]:
    """Let processes started in the block render without a screen."""
    before = os.environ.get("MUJOCO_GL")
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo reads it when it is imported
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("MUJOCO_GL", None)


def _request(
    pool: Workers, rendering: dict, requests: dict
) -> tuple[dict[int, Reply], dict[int, Picture]]:
    """Serve the requests; return also a picture of every environment that was asked."""
    try:
        replies = pool.request(requests)
        pictures = pool.request(dict.fromkeys(replies, ("render", rendering)))
    except Exception as error:
        reason = " ".join(str(error).split()) or "its process ended"
        raise UserError(
            f"cannot render here with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')} "
            f"({type(error).__name__}: {reason}); set MUJOCO_GL=egl and install libEGL "
            "(Debian: apt-get install libegl1), or MUJOCO_GL=osmesa and libosmesa6"
        ) from error
    for picture in pictures.values():
        if getattr(picture, "dtype", None) != np.uint8 or picture.shape[2:] != (3,):
            raise UserError(
                "cannot film: the environment renders no RGB images; its factory must pass "
                'render_mode="rgb_array" on'
            )
    # H.264 takes even sizes alone.
    return replies, {i: p[: len(p) // 2 * 2, : p.shape[1] // 2 * 2] for i, p in pictures.items()}


def _captioned(picture: Picture, left: str, middle: str, right: str) -> Picture:
    """Return the picture under a caption of three parts."""
    height, width, _ = picture.shape
    image = Image.new("RGB", (width + GAP, height + CAPTION), "white")
    image.paste(Image.fromarray(picture), (0, CAPTION))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    for text, x, anchor in ((left, 8, "l"), (middle, width / 2, "m"), (right, width - 8, "r")):
        draw.text((x, CAPTION / 2), text, "black", font, anchor + "m")
    return np.asarray(image)


def _side_by_side(takes: Sequence[_Take]) -> UInt8[np.ndarray, "picture height width 3"]:
    longest = max(len(take.pictures) for take in takes)
    rows = [take.pictures + take.pictures[-1:] * (longest - len(take.pictures)) for take in takes]
    return np.stack([np.concatenate(pictures, axis=1) for pictures in zip(*rows, strict=True)])


def _encode(pictures: UInt8[np.ndarray, "picture height width 3"], rate: float) -> bytes:
    """Return the pictures as H.264 in mp4, `rate` of them a second."""
    _, height, width, _ = pictures.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{rate:g}"]
    coded = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    # imageio's own writer forks this process, and a fork of one that runs JAX may hang.
    program = _encoder()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        command = [program, "-loglevel", "error", *raw, "-i", "-", *coded, str(path)]
        done = subprocess.run(command, input=pictures.tobytes(), capture_output=True)
        if done.returncode:
            raise UserError(f"cannot write a video: {done.stderr.decode(errors='replace').strip()}")
        return path.read_bytes()


def _encoder() -> str:
    """Return the path of ffmpeg. UserError if there is none."""
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError(f"cannot write a video: {error}") from None
