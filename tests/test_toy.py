"""The toy's exact flow against integrals, its paths against the sampler, and its page."""

import json
import re
import shutil
import subprocess
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from telling import tells

from qgf.core.flow import euler, flow_matching_loss
from qgf.core.guidance import ESTIMATORS, guided_sample
from studies import STUDIES, toy
from studies._mixture import Mixture, critic, guided_path, train_network
from studies._slider import write_slider

UNEVEN = Mixture(jnp.array([[-0.5], [0.1], [0.7]]), jnp.array([0.2, 0.5, 0.3]), 0.1)
PLANE = Mixture(jnp.array([[-0.5, 0.3], [0.4, 0.6]]), jnp.array([0.4, 0.6]), 0.2)


def velocity(mixture, action, t):
    action = jnp.asarray(action, jnp.float32)
    return np.asarray(mixture(action, jnp.full(len(action), t)))


def density(mixture, action, t):
    """The density of a_t, a mixture of its own, in float64."""
    means = np.asarray(mixture.means, np.float64)
    variance = (t * mixture.std) ** 2 + (1 - t) ** 2
    square = np.square(action[:, None] - t * means).sum(-1)
    each = np.exp(-square / (2 * variance)) / (2 * np.pi * variance) ** (means.shape[1] / 2)
    return each @ np.asarray(mixture.weights, np.float64)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.8, 0.95])
def test_velocity_is_the_mean_over_all_noise_and_actions_of_the_path(t):
    # a_0 = (a_t - t a_1) / (1 - t) for every a_1 of a fine grid, weighed by both densities.
    at, a1 = np.linspace(-1, 1, 9), np.linspace(-1.5, 1.7, 40_001)
    a0 = (at[:, None] - t * a1) / (1 - t)
    weight = np.exp(-(a0**2) / 2) * density(UNEVEN, a1[:, None], 1)
    expected = ((a1 - a0) * weight).sum(1) / weight.sum(1)
    np.testing.assert_allclose(velocity(UNEVEN, at[:, None], t)[:, 0], expected, atol=2e-5)


@pytest.mark.parametrize("t", [0.1, 0.4, 0.9])
def test_velocity_and_score_belong_together(t):
    # v = (a + (1 - t) ∇ log p_t(a)) / t, here without the division.
    action = np.random.default_rng(0).uniform(-1, 1, (20, 2))
    for mixture in (PLANE, Mixture(PLANE.means, jnp.array([0.9, 0.1]), 0.05)):
        step = 1e-5 * np.eye(2)
        up, down = ([np.log(density(mixture, action + s * d, t)) for d in step] for s in (1, -1))
        score = np.transpose(np.subtract(up, down)) / 2e-5
        expected = action + (1 - t) * score
        scale = abs(expected).max()
        np.testing.assert_allclose(t * velocity(mixture, action, t), expected, atol=1e-4 * scale)


def test_density_flows_with_the_velocity():
    # ∂p/∂t + ∇·(p v) = 0, by central differences.
    action, t, step = np.random.default_rng(0).uniform(-0.8, 0.8, (30, 2)), 0.6, 1e-3

    def flux(action, i):
        return density(PLANE, action, t) * velocity(PLANE, action, t)[:, i]

    change = (density(PLANE, action, t + step) - density(PLANE, action, t - step)) / (2 * step)
    divergence = sum(
        (flux(action + step * unit, i) - flux(action - step * unit, i)) / (2 * step)
        for i, unit in enumerate(np.eye(2))
    )
    np.testing.assert_allclose(change, -divergence, atol=2e-3 * abs(change).max())


def test_many_euler_steps_give_the_mixture():
    # Noise at the quantiles of N(0, 1), so that the ends are quantiles of the mixture.
    count = 5_000
    levels = jnp.asarray((np.arange(count) + 0.5) / count)
    noise = jax.scipy.stats.norm.ppf(levels)[:, None]
    ends = np.asarray(jax.jit(partial(euler, UNEVEN, steps=500))(noise))
    shares = (abs(ends - UNEVEN.means[:, 0]).argmin(1)[:, None] == np.arange(3)).mean(0)
    np.testing.assert_allclose(shares, UNEVEN.weights, atol=2e-3)
    mean = 0.2 * -0.5 + 0.5 * 0.1 + 0.3 * 0.7
    variance = 0.2 * 0.25 + 0.5 * 0.01 + 0.3 * 0.49 + 0.01 - mean**2
    assert abs(ends.mean() - mean) < 2e-3 and abs(ends.var() / variance - 1) < 5e-3


def test_samples_have_the_moments_of_the_mixture():
    actions = np.asarray(PLANE.sample(20_000, jax.random.key(0)))
    weights, means = np.asarray(PLANE.weights), np.asarray(PLANE.means)
    away = means - weights @ means
    covariance = 0.04 * np.eye(2) + away.T @ (weights[:, None] * away)
    np.testing.assert_allclose(actions.mean(0), weights @ means, atol=0.01)
    np.testing.assert_allclose(np.cov(actions.T), covariance, atol=0.005)


@pytest.mark.bit_exact  # unoptimized, the two differ by more near the peak
@pytest.mark.parametrize("name", ["qgf", "qfql", "bptt"])
def test_the_recorded_path_is_the_samplers(name):
    """To rounding: the compiler optimizes two programs, each in its own way."""
    noise = jax.random.normal(jax.random.key(0), (50, 2))
    weight, peak = jnp.linspace(0.1, 3, 50), PLANE.means[1]
    options = {"estimator": ESTIMATORS[name], "steps": 7}
    actions, g = jax.jit(partial(guided_path, PLANE, **options))(peak, noise, weight)
    sample = jax.jit(lambda *args: guided_sample(PLANE, critic(peak), *args, **options))
    ends = sample(noise, weight)
    np.testing.assert_allclose(jnp.clip(actions[-1], -1, 1), ends, atol=1e-5)
    assert actions[0].tobytes() == noise.tobytes()
    for k in range(7):
        step = 7 * (actions[k + 1] - actions[k]) - velocity(PLANE, actions[k], k / 7)
        np.testing.assert_allclose(step, weight[:, None] * g[k], atol=1e-4 * abs(step).max())


def test_a_gradient_that_is_not_finite_is_recorded_as_none():
    # At a* itself the gradient of -‖a - a*‖ in the plane is not defined.
    mixture = Mixture(jnp.zeros((1, 2)), jnp.ones(1), 0.1)
    start = jnp.array([[0.0, 0.0], [0.3, 0.4]])
    actions, g = guided_path(
        mixture, jnp.zeros(2), start, jnp.ones(2), estimator=ESTIMATORS["qfql"], steps=1
    )
    np.testing.assert_allclose(g[0], [[0, 0], [-0.6, -0.8]], atol=1e-6)
    assert actions[-1, 0].tolist() == [0, 0]


@pytest.mark.slow
def test_a_network_comes_near_the_least_loss():
    mixture = Mixture(jnp.array([[-0.6], [0.6]]), jnp.array([0.5, 0.5]), 0.2)
    network = train_network(mixture, 1500, jax.random.key(0))
    key = jax.random.key(2)
    actions = mixture.sample(20_000, jax.random.key(1))
    least, loss = (float(flow_matching_loss(v, actions, key)) for v in (mixture, network))
    assert 0 < loss - least < 0.08 * least  # the best constant is 0.5 above the least


def test_what_is_counted_by_hand():
    # Four particles in two modes, two steps: ends 0.1, -1.5 (outside), 0.5 and 0.9.
    means = np.array([[0.0], [0.8]])
    actions = np.zeros((3, 4, 1))
    actions[-1, :, 0] = 0.1, -1.5, 0.5, 0.9
    size = np.array([[0, 1, 2, 3], [4.5, 0, 0, 0.0]])
    row = toy._row("BPTT", 2.0, actions, size, means)
    assert row["modes"] == [0.5, 0.5] and row["share"] == 0.5 and row["outside"] == 0.25
    assert abs(row["distance"] - (0.1 + 1 + 0.5 + 0.9) / 4) < 1e-9
    # Pushes 2 ‖g‖ / 10 above 0.8: the first particle's 0.9 alone.
    assert row["thrown"] == 0.25
    np.testing.assert_allclose(row["gradient"][0], [1.5, 0])
    assert toy._row("QGF", 0.0, actions, size, means)["method"] == "BC"


@pytest.fixture
def data():
    """Data as they are measured, of particles that jump at random."""
    random, problems = np.random.default_rng(0), []
    for dim, kind in ((1, "exact"), (1, "network"), (2, "exact")):
        means, rows = np.array(toy.MEANS[dim]), []
        for name, w in [("BC", 0.0), *((name, w) for name in toy.METHODS for w in toy.WEIGHTS[1:])]:
            actions = random.normal(0.3, 0.3, (11, 50, dim))
            rows.append(toy._row(name, w, actions, random.uniform(0.1, 1, (10, 50)), means))
        problem = {"dim": dim, "velocity": kind, "means": toy.MEANS[dim], "results": rows}
        problems.append(problem)
    shares = {name: random.random((4, len(toy.WEIGHTS))).tolist() for name in toy.METHODS}
    settings = {"particles": 7, "shares": shares}
    return {"particles": 50, "train_steps": 5, "problems": problems, "random": settings}


def test_what_is_said_and_drawn_is_the_data(data):
    text, first = toy.say(data), data["problems"][0]
    assert tells(text, 50, 10, 8)  # particles, Euler steps, the largest weight
    shares = [toy._select(first, "BC")[0]["share"]]
    shares += [toy._select(first, "OOD", w)[0]["share"] for w in (0.5, 1.0, 2.0)]
    assert tells(text, 0.5, 1, 2, *(round(share, 2) for share in shares))
    axes = [ax for part in toy.draw(data).subfigs for ax in part.axes]
    assert len(axes) == 24
    drawn = [line.get_ydata() for line in axes[3].lines[1:]]  # after the line of a*
    paths = np.asarray(toy._select(first, "OOD", 2.0)[0]["paths"])
    np.testing.assert_array_equal(drawn, paths[..., 0].T)
    shares = {line.get_label(): line.get_ydata() for line in axes[4].lines}
    assert shares["QGF"].tolist() == [
        row["share"] for row in toy._select(first, "BC") + toy._select(first, "QGF")
    ]


def told(data, shares, thrown):
    """What is said of the data with these shares at all weights, and thrown particles."""
    changed = json.loads(json.dumps(data))
    for row in changed["problems"][0]["results"]:
        if row["weight"]:
            row["share"], row["thrown"] = shares[row["method"]], thrown[row["method"]]
    return toy.say(changed)


def test_the_verdict_follows_the_data(data):
    shares = {"OOD": 0.2, "BPTT": 0.95, "QGF": 0.99}
    thrown = {"OOD": 0.0, "BPTT": 0.1, "QGF": 0.0}
    text = told(data, shares, thrown)
    assert tells(text, 4, 4) and "Not found" not in text
    for change, claim in (
        ({"QGF": 0.8}, "QGF reaches a*"),
        ({"BPTT": 0.8}, "BPTT reaches a*"),
        ({"OOD": 0.6}, "OOD goes to a wrong mode whatever the weight"),
    ):
        text = told(data, shares | change, thrown)
        assert tells(text, 3, 4) and claim in text.partition("Not found")[2]
    for other in ({"BPTT": 0.0}, {"QGF": 0.1}):
        text = told(data, shares, thrown | other)
        assert "BPTT is unstable." in text.partition("Not found")[2]
    nothing = told(data, {"OOD": 1.0, "BPTT": 0.0, "QGF": 0.0}, dict.fromkeys(thrown, 0.0))
    assert tells(nothing, 0, 4)


def test_random_settings_are_counted(data):
    changed = json.loads(json.dumps(data))
    count = len(toy.WEIGHTS)
    best = [[0.0] * (count - 1) + [share] for share in (0.2, 0.3, 0.95)]
    changed["random"]["shares"] = {name: best for name in toy.METHODS}
    shown = toy.say(changed)
    assert tells(shown, 3, 1, 7, 1, 2)  # settings in 1-D of 7 particles; OOD reached and missed


@pytest.mark.slow
def test_the_whole_study(tmp_path, monkeypatch):
    monkeypatch.setitem(toy.SIZES, "smoke", (60, 3, 5, (1,)))
    data = json.loads(json.dumps(STUDIES["toy"].measure("smoke", tmp_path, None)))
    kinds = [(problem["dim"], problem["velocity"]) for problem in data["problems"]]
    assert kinds == [(1, "exact"), (1, "network"), (2, "exact")]
    for problem in data["problems"]:
        assert [len(toy._select(problem, name)) for name in ("BC", "OOD")] == [1, 6]
    assert tells(toy.say(data), 3, 1, 200)
    assert (tmp_path / "toy.html").stat().st_size < 30_000
    exact = data["problems"][0]
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), 1), (60, 1))[:40]
    mixture = Mixture(jnp.array(exact["means"]), jnp.full(3, 1 / 3), toy.STD)
    for row in exact["results"]:
        if "paths" in row:
            ends = guided_sample(
                mixture,
                critic(mixture.means[0]),
                noise,
                row["weight"],
                estimator=ESTIMATORS[toy.METHODS.get(row["method"], "qgf")],
            )
            np.testing.assert_allclose(np.clip(row["paths"][-1], -1, 1), ends, atol=1e-4)
            np.testing.assert_allclose(row["paths"][0], noise, atol=1e-5)


@pytest.mark.slow
def test_random_settings_are_sampled_each_by_itself():
    random = toy._random(3)
    noise = jnp.tile(jax.random.normal(jax.random.key(1), (random["particles"], 1)), (2, 1))
    weight = jnp.repeat(jnp.array([0.0, 1.0]), random["particles"])
    for i, (means, weights) in enumerate(zip(random["means"], random["weights"], strict=True)):
        assert np.diff(np.sort(means)).min() >= 0.3 and np.abs(means).max() <= 0.9
        mixture = Mixture(jnp.array(means)[:, None], jnp.array(weights), toy.STD)
        q = critic(mixture.means[0])
        for name in ("OOD", "QGF"):
            estimator = ESTIMATORS[toy.METHODS[name]]
            ends = guided_sample(mixture, q, noise, weight, estimator=estimator)
            right = np.asarray(abs(ends - mixture.means[:, 0]).argmin(1) == 0).reshape(2, -1)
            at = [toy.WEIGHTS.index(w) for w in (0.0, 1.0)]
            expected = np.array(random["shares"][name][i])[at]
            np.testing.assert_allclose(right.mean(1), expected, atol=1.01 / random["particles"])
    assert len({tuple(means) for means in random["means"]}) == 3


CHROMIUM = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
DRIVE = """<script>
const seen = [];
function pick(id, value) {
  const part = document.getElementById(id);
  part.value = value;
  part.dispatchEvent(new Event("input", {bubbles: true}));
  seen.push({
    ends: window.ends, text: document.getElementById("result").textContent,
    paths: [...document.querySelectorAll("path.path")].map(path => path.getAttribute("d")),
  });
}
STEPS
document.body.innerHTML = "";
document.body.textContent = "SEEN" + JSON.stringify(seen) + "SEEN";
</script></body>"""


@pytest.fixture(scope="module")
def setting():
    problems = {}
    for dim, means in toy.MEANS.items():
        noise = np.asarray(jax.random.normal(jax.random.key(dim), (30, dim)))
        problems[dim] = {"means": means, "peak": means[0], "noise": noise.tolist()}
    return {"steps": 10, "std": toy.STD, "problems": problems}


def test_the_page_needs_nothing_beside_itself(setting, tmp_path):
    write_slider(tmp_path / "toy.html", setting)
    page = (tmp_path / "toy.html").read_text()
    assert not re.search(r"https?:|src=|href=|import|fetch\(", page)
    assert "<label>Guidance weight" in page and page.count("<label>") == 3


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome in PATH to open the page in")
def test_the_page_in_a_browser_agrees_with_the_sampler(setting, tmp_path):
    write_slider(tmp_path / "toy.html", setting)
    shown = [(dim, m, w) for dim in (1, 2) for m in ("qgf", "qfql", "bptt") for w in (0, 0.7, 3)]
    moves = "".join(
        f'pick("dim", {dim}); pick("method", "{m}"); pick("weight", {w});' for dim, m, w in shown
    )
    page = (tmp_path / "toy.html").read_text()
    driven = tmp_path / "driven.html"
    driven.write_text(page.replace("</body>", DRIVE.replace("STEPS", moves)))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", driven.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    seen = json.loads(done.stdout.split("SEEN")[1])[2::3]
    assert len(seen) == len(shown)
    for (dim, method, weight), at in zip(shown, seen, strict=True):
        expected = sampled(setting["problems"][dim], method, weight)
        np.testing.assert_allclose(at["ends"], expected, atol=1e-6, err_msg=f"{dim} {method}")
        means = np.asarray(setting["problems"][dim]["means"])
        right = int((toy._nearest(expected, means) == 0).sum())
        far = np.linalg.norm(expected - means[0], axis=-1).mean()
        assert at["text"].startswith(f"{right} of 30 particles end in the mode of a*")
        assert f"a* {far:.3f}" in at["text"]
        assert len(set(at["paths"])) == 30
    for dim in range(2):
        at_0 = [at["paths"] for at in seen[9 * dim : 9 * dim + 9 : 3]]
        assert at_0[0] == at_0[1] == at_0[2]
        different = {json.dumps(at["paths"]) for at in seen[9 * dim : 9 * dim + 9]}
        assert len(different) == 7


def sampled(problem, method, weight):
    """The sampler's actions in float64."""
    with jax.enable_x64(True):
        means, noise = (jnp.asarray(problem[name]) for name in ("means", "noise"))
        mixture = Mixture(means, jnp.full(len(means), 1 / len(means)), toy.STD)
        options = {"estimator": ESTIMATORS[method]}
        sample = jax.jit(partial(guided_sample, mixture, critic(means[0]), **options))
        return np.asarray(sample(noise, jnp.full(len(noise), weight * 1.0)))
