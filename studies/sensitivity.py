"""How much an estimator's gradient turns when the noisy action is moved a little."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from qgf.comparison import learners, run_folder
from qgf.core import ESTIMATORS, Critic, Velocity
from qgf.executor import Executor
from qgf.methods import bind
from qgf.run import load_record, of_seed, validation_batch
from studies._runs import CUBE, study_plan

ENV = CUBE.format(2)
SCALES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the perturbation, in units of an action dimension
STATES = {"smoke": 16, "laptop": 512, "paper": 1024}
CLAIMED = ("qgf", "qgf-chain", "qgf-jacobian", "bptt")  # from least to most sensitive
STYLES = {
    "qgf": ("#0072b2", "-", "o"),
    "qfql": ("#d55e00", "-", "s"),
    "bptt": ("#000000", "--", "^"),
    "qgf-chain": ("#56b4e9", "--", "v"),
    "qgf-jacobian": ("#009e73", "-.", "D"),
    "qgf-jacobian-regularized": ("#e69f00", "-.", "P"),
    "qgf-jacobian-ortho": ("#cc79a7", ":", "X"),
    "qgf-jacobian-smooth": ("#999999", ":", "*"),
}


def measure(preset: str, out: Path, executor: Executor | None, env: str = ENV) -> dict[str, Any]:
    """Return the mean cosine of every estimator, for every flow time and perturbation."""
    plan = study_plan(preset, out, (env,), executor, ["qgf"])
    record = load_record(run_folder(plan, "critic", env))
    batch = validation_batch(record, STATES[preset])
    first = bind(of_seed(learners(plan, "qgf", env), 0), batch.obs, batch.goal)
    steps = record["config"]["denoise_steps"]
    policy, critic = first["policy"], first["critic"]
    found = {
        name: np.asarray(cosines(name, policy, critic, batch.action, steps)).tolist()
        for name in ESTIMATORS
    }
    times = [k / steps for k in range(steps)]
    return {
        "env": env,
        "states": len(batch.obs),
        "times": times,
        "scales": list(SCALES),
        "cosines": found,
    }


def cosines(
    name: str,
    velocity: Velocity,
    critic: Critic,
    action: Float[Array, "batch action"],
    steps: int,
) -> Float[Array, "time scale"]:
    """Return the mean over the batch of cos(G(a_t), G(a_t + ε)).

    a_t lies on the path from noise to the data's action, t on the sampler's grid; ε is
    Gaussian with a standard deviation of SCALES per dimension. Noise and the direction of ε
    are the same for all estimators, times and scales.
    """
    noise, direction = jax.random.normal(jax.random.key(0), (2, *action.shape))

    @jax.jit
    def gradient(t: Array, noisy: Array) -> Array:
        return ESTIMATORS[name](velocity, critic, noisy, jnp.full(len(noisy), t), steps)[1]

    rows = []
    for k in range(steps):
        t = jnp.asarray(k / steps, action.dtype)
        noisy = (1 - t) * noise + t * action
        g = gradient(t, noisy)
        moved = [gradient(t, noisy + scale * direction) for scale in SCALES]
        rows.append(jnp.stack([_cosine(g, other).mean() for other in moved]))
    return jnp.stack(rows)


def _cosine(a: Array, b: Array) -> Array:
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / jnp.maximum(norms, 1e-30)


def draw(data: dict[str, Any]) -> Figure:
    """Draw the cosines against the size of the perturbation and against flow time."""
    figure = Figure((7.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    middle = len(data["scales"]) // 2
    for name, found in data["cosines"].items():
        color, line, marker = STYLES[name]
        style = {"color": color, "linestyle": line, "marker": marker, "markersize": 4}
        left.plot(data["scales"], np.mean(found, axis=0), label=name, **style)
        right.plot(data["times"], np.array(found)[:, middle], **style)
    left.set(xscale="log", xlabel="standard deviation of ε", ylabel="cos(G(a), G(a + ε))")
    right.set(xlabel=f"flow time t (ε of {data['scales'][middle]:g})")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", lw=0.8)
    figure.legend(frameon=False, fontsize=7, loc="outside upper left", ncols=4)
    return figure


def say(data: dict[str, Any]) -> str:
    """Compare with the paper: QGF turns least, then chain, then Jacobian, BPTT most."""
    mean = {name: float(np.mean(found)) for name, found in data["cosines"].items()}
    order = sorted(mean, key=lambda name: -mean[name])
    claimed = sorted(CLAIMED, key=lambda name: -mean[name])
    agrees = "as the paper says" if tuple(claimed) == CLAIMED else "unlike the paper"
    listed = ", ".join(f"{name} {mean[name]:.2f}" for name in order)
    return (
        "The paper finds QGF's gradient the least sensitive to noise in the action, then that of "
        "the chain, then that with the one-step Jacobian, and BPTT's the most. At "
        f"{data['states']} states of {data['env']}, averaged over flow times and perturbations of "
        f"{data['scales'][0]:g} to {data['scales'][-1]:g}, the mean cosine is: {listed}. Of the "
        f"four the order is {', '.join(claimed)}: {agrees}."
    )
