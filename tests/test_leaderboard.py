"""Figures against loops, closed forms and enumeration; pages against the figures."""

import io
import json

import numpy as np
import pytest
import scipy.stats
from PIL import Image
from test_report import Reader

from qgf.comparison.leaderboard import leaderboard, write_leaderboard
from qgf.errors import UserError
from qgf.evaluation.statistics import components, mean_over_tasks, success_interval

TASKS = [f"cube-single-play-singletask-task{i}-v0" for i in (1, 2, 4)] + [
    "scene-play-singletask-v0"
]
CHANCES = {"qgf": 0.8, "fql": 0.55, "bc": 0.4, "bfn": 0.6}
FACTS = {"seeds": [0, 1, 2], "config": {"width": 256}, "test_episodes": 20}


def entry(env, method, wins, **changes):
    wins = np.asarray(wins, int)
    same = {"weight": 0.03, "samples": 1, "fallbacks": 0, "tune": {"success": 0.5, "episodes": 9}}
    returns = (-5.0 * (1 - wins)).tolist()
    values = {"env": env, "method": method, "episodes": wins.tolist(), "returns": returns}
    return same | values | changes


def costs(*methods, ms=1.0):
    """Costs of methods in one domain."""
    return {
        name: {"ms": {"1": ms, "50": 1234.5}, "flops": 12_300_000, "train_seconds": 61.2}
        for name in methods
    }


CUBE, SCENE = "cube-single-play-v0", "scene-play-v0"
COSTS = {CUBE: costs(*CHANCES), SCENE: costs("bc", "qgf", "bfn", ms=1.5)}


@pytest.fixture(scope="module")
def wins():
    """Outcomes by task and method; fql has only the first and the third task."""
    random = np.random.default_rng(0)
    found = {env: {m: random.random((3, 20)) < p for m, p in CHANCES.items()} for env in TASKS}
    for env in (TASKS[1], TASKS[3]):
        del found[env]["fql"]
    return found


@pytest.fixture(scope="module")
def result(wins):
    changes = {"bfn": {"samples": 8, "weight": 0.0}, "qgf": {"fallbacks": 4}}
    entries = [
        entry(env, method, outcome, **changes.get(method, {}))
        for env, found in wins.items()
        for method, outcome in found.items()
    ]
    return leaderboard(entries, COSTS, FACTS)


@pytest.fixture(scope="module")
def written(result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaderboard") / "new"
    write_leaderboard(folder, result)
    return folder


def test_figures_of_a_task(result, wins):
    for env, found in wins.items():
        assert result["tasks"][env].keys() == found.keys()
        for method, outcome in found.items():
            figures = result["tasks"][env][method]
            assert figures["success"] == pytest.approx(outcome.sum() / 60)
            assert figures["success_ci95"] == success_interval(outcome)
            assert figures["episodes"] == 60
            assert figures["return"] == pytest.approx(-5 * (1 - outcome.sum() / 60))
            if method == "bc":
                assert "difference" not in figures
            else:
                gain = outcome.astype(int) - found["bc"]
                assert figures["difference"] == pytest.approx(gain.mean())
                low, high = figures["difference_ci95"]
                assert low < gain.mean() < high


def test_aggregates_against_loops(result, wins):
    def check(figures, envs, method):
        scores = [[row.mean() for row in wins[e][method]] for e in envs if method in wins[e]]
        assert figures["tasks"] == len(scores)
        assert figures["mean"] == pytest.approx(np.mean(scores))
        every = np.repeat(scores, 4)  # so that a quarter is a whole number
        assert figures["iqm"] == pytest.approx(scipy.stats.trim_mean(every, 0.25))
        for name in ("mean", "iqm"):
            low, high = figures[f"{name}_ci95"]
            assert low < figures[name] < high < low + 0.4
        if method == "qgf":
            assert "qgf_improves" not in figures
            return
        chances = []
        for env in (e for e in envs if method in wins[e]):
            pairs = [(x.mean(), y.mean()) for x in wins[env]["qgf"] for y in wins[env][method]]
            chances.append(sum((x > y) + 0.5 * (x == y) for x, y in pairs) / len(pairs))
        assert figures["qgf_improves"] == pytest.approx(np.mean(chances))
        assert figures["qgf_improves_tasks"] == len(chances)

    domains = {CUBE: TASKS[:3], SCENE: TASKS[3:]}
    assert {name: domain["tasks"] for name, domain in result["domains"].items()} == domains
    for method in CHANCES:
        check(result["overall"][method], TASKS, method)
        check(result["domains"]["cube-single-play-v0"]["methods"][method], TASKS[:3], method)
    assert "fql" not in result["domains"]["scene-play-v0"]["methods"]


def test_bc_comes_first_then_the_best(result):
    assert result["methods"][:2] == ["bc", "qgf"]
    means = [result["overall"][name]["mean"] for name in result["methods"][1:]]
    assert means == sorted(means, reverse=True)


def test_intervals_of_the_mean_are_those_of_the_statistics(result, wins):
    for method in CHANCES:
        outcomes = [found[method] for _, found in sorted(wins.items()) if method in found]
        figures = result["overall"][method]
        assert (figures["mean"], figures["mean_ci95"]) == mean_over_tasks(outcomes, 2000)


def test_the_interval_has_the_width_of_its_closed_form():
    random = np.random.default_rng(0)
    wins = random.random((6, 50)) < random.random((1, 50))
    figures = leaderboard([entry(TASKS[0], "bc", wins)], {CUBE: costs("bc")}, {})["overall"]["bc"]
    found = components(wins)
    spread = scipy.stats.t.ppf(0.975, found.freedom) * found.variance**0.5
    assert figures["mean_ci95"] == pytest.approx((wins.mean() - spread, wins.mean() + spread), 0.06)


def test_the_interval_of_improvement_is_exact():
    # qgf wins every episode and fql has one seed of two that does: both seeds drawn are that
    # one (a tie) with probability ¼, no seed is with ¼, so P is ½, ¾, 1.
    entries = [entry(TASKS[0], "qgf", [[1], [1]]), entry(TASKS[0], "fql", [[1], [0]])]
    figures = leaderboard(entries, {CUBE: costs("qgf", "fql")}, {})["overall"]["fql"]
    assert (figures["qgf_improves"], figures["qgf_improves_ci95"]) == (0.75, (0.5, 1.0))


def test_methods_that_do_the_same_do_not_differ():
    wins = np.random.default_rng(0).random((2, 10)) < 0.5
    entries = [entry(TASKS[0], name, wins) for name in ("bc", "qgf")]
    result = leaderboard(entries, {CUBE: costs("bc", "qgf")}, {})
    figures = result["tasks"][TASKS[0]]["qgf"]
    assert (figures["difference"], figures["difference_ci95"]) == (0, (0, 0))
    assert result["overall"]["bc"]["qgf_improves"] == 0.5


def test_the_same_figures_every_time(result, wins):
    entries = [entry(e, m, outcome) for e, found in wins.items() for m, outcome in found.items()]
    again = leaderboard(entries[::-1], COSTS, FACTS)
    assert again["overall"] == result["overall"] and again["domains"] == result["domains"]


def test_json_is_the_result(result, written):
    assert json.loads((written / "leaderboard.json").read_text()) == json.loads(json.dumps(result))
    assert {path.name for path in written.iterdir()} == {
        f"leaderboard.{kind}" for kind in ("json", "md", "html", "png")
    }


def percent(figures, name):
    low, high = (f"{100 * value:.0f}" for value in figures[f"{name}_ci95"])
    return f"{100 * figures[name]:.0f}% ({low} to {high})"


def expected_rows(result):
    """The rows of all tables, but for differences, written down anew."""
    settings = {"qgf": "w = 0.03", "bfn": "N = 8", "fql": "–", "bc": "–"}
    for method in result["methods"]:
        every = result["overall"][method]
        better = "–" if method == "qgf" else percent(every, "qgf_improves")
        tasks, ms = ("2 of 4", "1") if method == "fql" else ("4 of 4", "1.25")  # mean of domains
        means = [percent(every, "mean"), percent(every, "iqm")]
        yield [method, tasks, *means, better, ms, "1,234", "12.3", "61.2"]
        for domain in result["domains"].values():
            if method in domain["methods"]:
                found = [result["tasks"][env].get(method) for env in domain["tasks"]]
                cells = [percent(f, "success") if f else "–" for f in found]
                means = [percent(domain["methods"][method], name) for name in ("mean", "iqm")]
                yield [method, *cells, *means, settings[method]]


@pytest.fixture(params=["md", "html"])
def tables(request, written):
    """The rows and the whole text of a page."""
    text = (written / f"leaderboard.{request.param}").read_text()
    if request.param == "md":
        lines = [line for line in text.splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines], text
    page = Reader(text)
    assert page.open == [] and page.links == []
    assert "http://" not in text and "https://" not in text
    text = page.text.replace("\u00a0", " ")
    return [[cell.replace("\u00a0", " ") for cell in row] for row in page.rows], text


def test_pages_show_the_figures(result, tables):
    rows, text = tables
    for row in expected_rows(result):
        assert rows.count(row) == 1
    assert ["config", "width 256"] in rows and ["seeds", "0, 1, 2"] in rows
    heads = [f"task{i}, 60 episodes" for i in (1, 2, 4)]
    assert ["method", *heads, "mean", "IQM", "setting"] in rows
    assert "qgf 12." in text  # steps left unguided


def test_pages_show_the_differences(result, tables):
    rows, _ = tables
    figures = [result["tasks"][env]["qgf"] for env in TASKS[:3]]
    values = [(f["difference"], *f["difference_ci95"]) for f in figures]
    assert all(abs(100 * v) >= 1 for row in values for v in row)  # no sign of 0 to settle
    cells = ["{:+.0f} ({:+.0f} to {:+.0f})".format(*(100 * v for v in row)) for row in values]
    assert ["qgf", *cells] in rows
    assert len([row for row in rows if row[0] == "bc"]) == 3  # in no table of differences


def test_the_picture_is_embedded_and_kept(result, written):
    ((content, attributes),) = Reader((written / "leaderboard.html").read_text()).media["image/png"]
    assert content == (written / "leaderboard.png").read_bytes()
    for name in result["methods"]:
        assert f"{name} {percent(result['overall'][name], 'mean')}" in attributes["alt"]
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    assert pixels.shape[1] > 1000 and pixels.std() > 10


def test_without_bc_and_qgf(tmp_path):
    result = leaderboard([entry(TASKS[0], "fql", [[1, 0]])], {CUBE: costs("fql")}, {})
    write_leaderboard(tmp_path, result)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "difference to BC" not in text
    assert "| fql | 1 of 1 | 50% (0 to 100) | 50% (0 to 100) | – |" in text


def test_a_method_has_no_task_in_common_with_qgf():
    entries = [entry(TASKS[0], "qgf", [[1]]), entry(TASKS[1], "fql", [[1]])]
    assert (
        "qgf_improves"
        not in leaderboard(entries, {CUBE: costs("qgf", "fql")}, {})["overall"]["fql"]
    )


def test_costs_may_be_unknown(tmp_path):
    known = costs("bc")
    known["bc"] |= {"ms": {"1": 1.5}, "train_seconds": None}
    write_leaderboard(tmp_path, leaderboard([entry(TASKS[0], "bc", [[1]])], {CUBE: known}, {}))
    assert "| 1.5 | – | 12.3 | – |" in (tmp_path / "leaderboard.md").read_text()


def test_a_folder_that_cannot_be_written(result, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_leaderboard(tmp_path / "file", result)
