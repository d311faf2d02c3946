"""What people say of recorded episodes: whether each succeeded, asked beside its last picture."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from qgf._progress import progress
from qgf.data.readers import HEAD, Column, Recording, read_labels
from qgf.errors import UserError
from qgf.files import atomic_open

WIDTH = 160  # pixels of a picture on the sheet
ACROSS = 8
ANSWERS = {"s": True, "f": False}


def cameras(recording: Recording) -> tuple[str, ...]:
    """Return the names of a recording's cameras.

    Args:
        recording: what `open_recording` returned.
    """
    arrays = (name for name, column in recording.columns.items() if _is_picture(column))
    return (*recording.pictures, *arrays)


def last_picture(recording: Recording, camera: str) -> Callable[[int], np.ndarray]:
    """Return what gives the last picture of an episode, by the episode's number from 0.

    Args:
        recording: what `open_recording` returned.
        camera: one of its `cameras`.

    Raises:
        UserError: there is no such camera, or its pictures cannot be read.
    """
    known = cameras(recording)
    if camera not in known:
        raise UserError(f"{recording.source} has no camera {camera!r}; it has {', '.join(known)}")
    if camera in recording.pictures:
        return recording.pictures[camera]
    last = recording.column(camera)[recording.ends]
    return lambda episode: last[episode]


def contact_sheet(recording: Recording, camera: str) -> Image.Image:
    """Return the last pictures of all episodes on one sheet, each with the episode's number.

    Args:
        recording: what `open_recording` returned.
        camera: one of its `cameras`.

    Raises:
        UserError: as `last_picture`.
    """
    read, count = last_picture(recording, camera), len(recording.ends)
    small = []
    with progress() as bar:
        shown = bar.add_task("reading", total=count, unit="pictures")
        for episode in range(count):
            small.append(_small(read(episode)))
            bar.advance(shown)
    height = max(picture.height for picture in small)
    across = min(ACROSS, count)
    sheet = Image.new("RGB", (across * WIDTH, -(-count // across) * height))
    draw = ImageDraw.Draw(sheet)
    for episode, picture in enumerate(small):
        place = episode % across * WIDTH, episode // across * height
        sheet.paste(picture, place)
        draw.text(
            (place[0] + 4, place[1] + 2), str(episode), "white", stroke_width=2, stroke_fill="black"
        )
    return sheet


def label_episodes(
    recording: Recording,
    out: Path,
    ask: Callable[[str], str],
    camera: str | None = None,
) -> dict[int, bool]:
    """Ask of every episode without a label whether it succeeded; return all labels.

    Every answer is written at once, so that the same call goes on where it was stopped. The sheet
    of last pictures lies beside the file, as PNG.

    Args:
        recording: what `open_recording` returned.
        out: a CSV file with the columns episode and success, which `success-csv:FILE` reads.
        ask: shows a text and returns what a person answers; EOFError ends the questions.
        camera: one of its `cameras`; by default the first one.

    Raises:
        UserError: there are no pictures, or a file is damaged or cannot be written.
    """
    known = cameras(recording)
    if not known:
        raise UserError(
            f"{recording.source} has no pictures; write {out} by hand: a line {','.join(HEAD)}, "
            "then one line per episode, numbered from 0, with 1 or 0"
        )
    count = len(recording.ends)
    labels = read_labels(out, count) if out.exists() else {}
    sheet = out.with_suffix(".png")
    picture = contact_sheet(recording, camera or known[0])
    with atomic_open(sheet) as file:
        picture.save(file, "PNG")
    left = [episode for episode in range(count) if episode not in labels]
    given: list[int] = []
    while left:
        question = f"{sheet}: episode {left[0]} of {count} (s, f, b for back, q to stop): "
        try:
            answer = ask(question).strip().lower()
        except EOFError:
            break
        if answer in ANSWERS:
            given.append(left.pop(0))
            labels[given[-1]] = ANSWERS[answer]
            _write(out, labels)
        elif answer == "b" and given:
            left.insert(0, given.pop())
        elif answer == "q":
            break
    return labels


def _is_picture(column: Column) -> bool:
    return column.dtype == np.uint8 and len(column.shape) == 4 and column.shape[-1] in (1, 3, 4)


def _small(picture: UInt8[np.ndarray, "height width channel"]) -> Image.Image:
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture[..., :3])
    height = max(1, round(image.height * WIDTH / image.width))
    return image.convert("RGB").resize((WIDTH, height))


def _write(out: Path, labels: dict[int, bool]) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(HEAD)
    rows.writerows((episode, int(labels[episode])) for episode in sorted(labels))
    with atomic_open(out) as file:
        file.write(text.getvalue().encode())
