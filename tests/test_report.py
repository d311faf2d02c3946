import base64
import dataclasses
import functools
import html.parser
import io
import json
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from telling import tells

from qgf import commands
from qgf.act import rollout
from qgf.errors import UserError
from qgf.evaluation import evaluate
from qgf.reports import video
from qgf.reports._report import _verdict, report
from qgf.run import read_config
from qgf.run.evaluation import SUCCESS, Evaluation, Figures, MethodResult, write_evaluation
from qgf.tasks._workers import Workers

WEIGHTS = [0.0, 0.5, 2.0]


class Reader(html.parser.HTMLParser):
    """The page's table rows, text, images, films and outward links."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.rows, self.text, self.media, self.links, self.open = [], "", {}, [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        for name in ("src", "href"):
            value = attributes.get(name, "data:")
            if value.startswith("data:"):
                kind, _, content = value.removeprefix("data:").partition(";base64,")
                self.media.setdefault(kind, []).append((base64.b64decode(content), attributes))
            else:
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "tr" in self.open:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    """A run with an evaluation, and its report with a film."""
    folder = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(run, folder)
    with pytest.MonkeyPatch.context() as patch:
        for module in (video, rollout):
            patch.setattr(module, "Workers", functools.partial(Workers, max_episode_steps=12))
        options = {"episodes": 3, "tune_episodes": 2, "best_of": [2], "slots": 6}
        write_evaluation(folder, evaluate(folder, WEIGHTS, **options))
        report(folder)
    return folder


def read(run):
    text = (run / "report.html").read_text()
    assert "http://" not in text and "https://" not in text
    page = Reader(text)
    assert page.open == [] and page.links == []
    return page


def test_numbers_are_those_of_the_evaluation(evaluated):
    result = json.loads((evaluated / "eval.json").read_text())
    rows = {row[0]: row[1:] for row in read(evaluated).rows}
    qgf = result["methods"]["qgf"]

    def cells(figures):
        low, high = figures["ci95"]
        found = [f"{figures['success']:.1%}", f"{low:.1%} to {high:.1%}"]
        if "difference" in figures:
            low, high = figures["difference_ci95"]
            found += [f"{figures['difference']:+.1%}", f"{low:+.1%} to {high:+.1%}"]
        else:
            found += ["", ""]
        return [*found, str(figures["episodes"])]

    assert rows["BC (w = 0)"] == cells(result["methods"]["bc"]["test"])
    assert rows["best of 2"] == cells(result["methods"]["bfn"]["test"])
    assert rows[f"QGF (w = {qgf['weight']:g})"] == cells(qgf["test"])
    assert rows["Checkpoint"] == ["step 40"]
    assert rows["Training seeds"] == ["3, 5"]


def test_pictures_are_embedded_and_kept(evaluated):
    images = read(evaluated).media["image/png"]
    assert len(images) == 3
    kept = {path.read_bytes() for path in (evaluated / "report").glob("*.png")}
    assert kept == {content for content, _ in images}
    for content, attributes in images:
        assert attributes["alt"]
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
        assert pixels.shape[1] > 1000 and pixels.std() > 10


def test_a_film_is_embedded_or_its_absence_explained(evaluated):
    page = read(evaluated)
    if "video/mp4" not in page.media:
        assert "cannot render" in page.text
        pytest.skip("this machine cannot render")
    ((film, attributes),) = page.media["video/mp4"]
    assert film[4:8] == b"ftyp"
    assert film == (evaluated / "report" / "rollout.mp4").read_bytes()
    assert "controls" in attributes


def test_commands_parse_to_what_was_run(evaluated, data):
    text = read(evaluated).text
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("qgf ")]
    train, evaluation, page = map(parse, lines)
    record = json.loads((evaluated / "config.json").read_text())
    config = dataclasses.asdict(read_config(record["config"]))
    assert train["config"] == json.loads(json.dumps(config))
    assert (train["env"], train["data"]) == (record["env"], str(data))
    assert train["out"] == evaluation["run"] == page["run"] == str(evaluated)
    assert commands._parse_seeds(train["seeds"]) == record["seeds"]
    assert (evaluation["weights"], evaluation["best_of"]) == (WEIGHTS, [2])
    assert (evaluation["episodes"], evaluation["tune_episodes"]) == (3, 2)
    assert evaluation["checkpoint"] == "40"


def parse(line):
    """Parse a command in a process where annotations are not checked; tyro bends them."""
    code = (
        "import dataclasses, json, sys; from qgf._parsing import parse; "
        "print(json.dumps(dataclasses.asdict(parse(sys.argv[1:])), default=str))"
    )
    done = [sys.executable, "-c", code, *line[1:]]
    return json.loads(subprocess.run(done, capture_output=True, text=True, check=True).stdout)


def test_what_is_missing_is_said_and_the_rest_shown(evaluated, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    (run / "metrics.jsonl").unlink()
    record = json.loads((run / "config.json").read_text())
    record["data"] |= {"folder": str(tmp_path / "gone"), "relative": "gone"}
    record["checksum"] = "edited"
    (run / "config.json").write_text(json.dumps(record))
    report(run, video=False)
    page = read(run)
    assert "no metrics.jsonl" in page.text
    assert f"the data file or folder {tmp_path / 'gone'} is gone" in page.text
    assert "video/mp4" not in page.media
    assert len(page.media["image/png"]) == 1


def test_a_run_that_was_not_evaluated(run):
    with pytest.raises(UserError, match=f"run `qgf eval {run}` first"):
        report(run)


@pytest.mark.parametrize("low, doubtful", [(-0.05, True), (0.0, True), (0.02, False)])
def test_the_verdict_claims_no_more_than_the_interval(low, doubtful):
    verdict = _verdict(judged(0.3, 0.5, difference=0.1, difference_ci95=(low, 0.2)))
    numbers = (0.3, 50, 40, 10, 95, 100 * low, 20, 50)
    assert tells(verdict, *numbers)
    assert tells(verdict, *numbers, 0) == doubtful  # the interval includes 0


def judged(weight, success, **gain):
    """An evaluation of which only qgf's test episodes are told; those of bc succeed at 40%."""
    test = Figures(-1.0, (-2.0, 0.0), 100.0, 50, 0, success, (0.0, 1.0))
    qgf = MethodResult(weight, 1, dataclasses.replace(test, **gain), ())
    bc = MethodResult(0.0, 1, dataclasses.replace(test, success=0.4), ())
    methods = {"bc": bc, "qgf": qgf}
    return Evaluation("", "", None, 1, 1, {}, (0,), 0, {}, None, SUCCESS, methods)


def test_the_verdict_without_guidance():
    verdict = _verdict(judged(0.0, 0.4))
    assert tells(verdict, 0) and not tells(verdict, 40)
