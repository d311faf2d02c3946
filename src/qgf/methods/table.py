"""Every method by name: what it needs and how it acts. A new one is one line here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from qgf.core.flow import FAILED, Sampled, bounded, checked_count, euler_counting
from qgf.core.guidance import ESTIMATORS, Estimator, guided_sample_counting
from qgf.core.search import gradient_steps
from qgf.core.tilt import policy_deviation, tilted
from qgf.errors import UserError, nearest
from qgf.learners import DEFAULT_KINDS, LEARNERS
from qgf.learners.diffusion import ddpm_sample
from qgf.learners.distill import qgf_distill, qgf_jacobian_distill
from qgf.learners.robust_q import robust_q

Learners = dict[str, Any]
"""Learners by role."""
Bound = dict[str, Any]
"""What learners act with at given observations, by role: `Learner.bind`."""
Act = Callable[[Bound, Float[Array, "batch draws*action"], Float[Array, " batch"], int], Sampled]
Kind = Literal["test-time", "extra network", "train-time"]

CLONED = "bc"
"""the method that all are compared with: the policy as it was cloned"""
GUIDED = "qgf"
"""the method that acts by default"""
BEST_OF = "bfn"
"""the method that chooses among samples of the policy"""
GUIDANCE = (0.003, 0.01, 0.03, 0.1, 0.3)
"""guidance weights that are searched by default"""
TILTS = (0.3, 1.0, 3.0, 10.0, 30.0)
PAPER_GUIDANCE = "w of 0.004, 0.008, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12"
QGF_PAPER = "arXiv 2606.11087"


@dataclass(frozen=True)
class Method:
    """One way to act with trained learners.

    `act(bound, noise, weight, steps)` returns actions and, for every row, how many of its
    steps went unguided because a gradient was not finite, or FAILED (with the action 0) where
    the networks gave it no action. `bound` is what `bind` returns; `weight` is what the method
    is tuned by at test time, one a row: the guidance weight, or what `tuned` says; `steps` is
    the number T of denoising steps. Given more noise, any method becomes best-of-N of itself.

    Attributes:
        roles: the learners it acts with.
        weights, samples: values searched by default; without weights there is nothing to tune.
        guided: its weight multiplies ∇Q along the policy's flow, so that
            `qgf.act.calibration.auto_weight` fits it.
        critic: kind of the critic trained beside it.
        stochastic: it draws noise at every denoising step, not only at the first.
        idea: the method in a few words.
        reference: where it is from.
        paper: the values that the paper of QGF searched.
    """

    kind: Kind
    roles: tuple[str, ...]
    act: Act
    idea: str
    reference: str
    tuned: str = "w"
    guided: bool = False
    weights: tuple[float, ...] = ()
    samples: tuple[int, ...] = (1,)
    paper: str = ""
    critic: str = "iql"
    stochastic: bool = False


def canonical(name: str) -> str:
    """Return the name of METHODS that a name or alias means. UserError suggests the nearest."""
    name = ALIASES.get(name, name)
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise UserError(f"no method {name!r}.{nearest(name, METHODS)} There are: {known}")
    return name


def find_method(name: str) -> Method:
    """Return the method of that name or alias.

    Args:
        name: a name of METHODS, or an alias of one.
    """
    return METHODS[canonical(name)]


def settings(
    name: str, weights: Sequence[float] | None = None, samples: Sequence[int] | None = None
) -> list[tuple[float, int]]:
    """Return the (weight, samples) to search for a method: those given, where it has any.

    Args:
        name: a name of METHODS, or an alias of one.
        weights: what to tune it by; by default the method's own.
        samples: numbers of samples N; by default the method's own.
    """
    method = find_method(name)
    own = method.weights if weights is None or not method.weights else weights
    counts = method.samples if not samples or method.samples == (1,) else sorted({*samples})
    return [(weight, n) for n in counts for weight in own or (0.0,)]


def kinds_of(method: Method, critic: str | None = None) -> dict[str, str]:
    """Return the kind (name in LEARNERS) of every learner to train for a method, by role.

    Args:
        method: what is to be trained for.
        critic: kind of the critic, by default the method's own.
    """
    kinds = DEFAULT_KINDS | {"critic": critic or method.critic}
    found: dict[str, str] = {}
    waiting = [*method.roles]
    while waiting:
        role = waiting.pop(0)
        if role not in found:
            found[role] = kinds.get(role, role)
            waiting += LEARNERS[found[role]].needs
    # Always in the same order: that of LEARNERS.
    return dict(sorted(found.items(), key=lambda item: list(LEARNERS).index(item[1])))


def needs_task(kinds: dict[str, str]) -> bool:
    """Whether learners, kinds by role, are critics or learn from one."""
    return "critic" in kinds or any("critic" in LEARNERS[kind].needs for kind in kinds.values())


def bind(
    learners: Learners,
    obs: PyTree,
    goal: Float[Array, "batch goal"] | None = None,
    repeats: int = 1,
) -> Bound:
    """Return what learners act with at these observations and goals; see `Learner.bind`.

    Args:
        learners: by role, of one training seed.
        obs: any tree of arrays that lead with the batch axis.
        goal: one per row, for a critic of goals.
        repeats: rows come as (repeats, batch), flattened.
    """
    return {role: learner.bind(obs, goal, repeats) for role, learner in learners.items()}


def denoising_steps(method: Method, learners: Learners, steps: int | None = None) -> int:
    """Return T: `steps`, or by default that of the settings its networks were trained with.

    Args:
        method: what acts.
        learners: those it acts with, by role.
        steps: T; None for that of training.

    Raises:
        UserError: `steps` is no number of steps, or not that which a network is tied to.
    """
    if steps is None:
        steps = learners[method.roles[0]].config.denoise_steps
    steps = checked_count(steps, "denoising steps")
    for role in method.roles:
        if learners[role].fixed_steps and steps != learners[role].config.denoise_steps:
            raise UserError(
                f"the {role} network acts in the {learners[role].config.denoise_steps} denoising "
                f"steps it was trained for, not in {steps}"
            )
    return steps


def unguided(role: str) -> Act:
    """Return how the flow of a role acts on its own."""

    def act(bound: Bound, noise: Array, weight: Array, steps: int) -> Sampled:
        return euler_counting(bound[role], noise, steps=steps)

    return act


def guided(estimator: Callable[[Bound], Estimator]) -> Act:
    """Return how the policy acts under the estimator that a run's learners make."""

    def act(bound: Bound, noise: Array, weight: Array, steps: int) -> Sampled:
        functions = bound["policy"], bound["critic"]
        return guided_sample_counting(
            *functions, noise, weight, steps=steps, estimator=estimator(bound)
        )

    return act


def _estimator(name: str) -> Act:
    return guided(lambda bound: ESTIMATORS[name])


def _network(estimator: Callable, role: str) -> Act:
    """Return how the policy acts under an estimator that takes a network of `role` first."""
    return guided(lambda bound: partial(estimator, bound[role]))


def _tilt(bound: Bound, noise: Array, weight: Array, steps: int) -> Sampled:
    deviation = policy_deviation(bound["policy"], noise, steps=steps)
    return guided(lambda bound: tilted(deviation))(bound, noise, weight, steps)


def _gradstep(bound: Bound, noise: Array, weight: Array, steps: int, *, climbs: int) -> Sampled:
    clean, failed = unguided("policy")(bound, noise, weight, steps)
    actions, skipped = gradient_steps(bound["critic"], clean, weight, steps=climbs)
    failed = failed == FAILED
    return jnp.where(failed[:, None], 0, actions), jnp.where(failed, FAILED, skipped)


def _one_step(role: str) -> Act:
    return lambda bound, noise, weight, steps: bounded(bound[role](noise))


def _branches(role: str) -> Act:
    return lambda bound, noise, weight, steps: euler_counting(
        bound[role](weight), noise, steps=steps
    )


def _diffusion(role: str) -> Act:
    def act(bound: Bound, noise: Array, weight: Array, steps: int) -> Sampled:
        draws = noise.reshape(len(noise), 1 + steps, -1).swapaxes(0, 1)
        return ddpm_sample(bound[role], draws)

    return act


_test_time = partial(
    Method,
    "test-time",
    ("policy", "critic"),
    reference=QGF_PAPER,
    guided=True,
    weights=GUIDANCE,
    paper=PAPER_GUIDANCE,
)


def _best_of(samples: int, reference: str = QGF_PAPER, paper: str = "N of 4, 16") -> Method:
    return Method(
        "test-time",
        ("policy", "critic"),
        unguided("policy"),
        "of N cloned actions the one with the highest Q",
        reference,
        samples=(samples,),
        paper=paper,
    )


def _under(critic: str, what: str) -> Method:
    return _test_time(_estimator("qgf"), f"qgf with {what}", critic=critic)


_extra = partial(
    Method,
    "extra network",
    reference=QGF_PAPER,
    guided=True,
    weights=GUIDANCE,
    paper=PAPER_GUIDANCE,
)
_trained = partial(Method, "train-time")

METHODS: dict[str, Method] = {
    "bc": Method(
        "test-time",
        ("policy",),
        unguided("policy"),
        "the flow policy as it was cloned",
        "arXiv 2210.02747",
    ),
    "qgf": _test_time(_estimator("qgf"), "∇Q at the one-step clean action, J = I"),
    "qfql": _test_time(_estimator("qfql"), "∇Q at the noisy action itself"),
    "bptt": _test_time(_estimator("bptt"), "∇Q through the whole remaining Euler chain"),
    "qgf-chain": _test_time(_estimator("qgf-chain"), "∇Q at the end of the Euler chain, J = I"),
    "qgf-jacobian": _test_time(_estimator("qgf-jacobian"), "QGF with the one-step Jacobian"),
    "qgf-jacobian-regularized": _test_time(
        _estimator("qgf-jacobian-regularized"), "that Jacobian halfway to I"
    ),
    "qgf-jacobian-ortho": _test_time(
        _estimator("qgf-jacobian-ortho"),
        "the orthogonal matrix nearest to that Jacobian",
    ),
    "qgf-jacobian-smooth": _test_time(
        _estimator("qgf-jacobian-smooth"),
        "that Jacobian averaged over perturbed actions",
    ),
    "qgf-tilt": _test_time(
        _tilt,
        "QGF whose strength follows the policy's spread: w is 1/β",
        guided=False,
        weights=TILTS,
        paper="",
    ),
    "bfn": _best_of(16),
    "bfn-4": _best_of(4),
    "ifql": _best_of(32, "arXiv 2502.02538", "N of 32, expectile 0.9"),
    "qgf+bfn": _test_time(
        _estimator("qgf"),
        "of N guided actions the one with the highest Q",
        samples=(4,),
    ),
    "qgf-bootstrapped": _under("bootstrapped", "the bootstrapped critic of qam"),
    "qgf-monte-carlo": _under("monte-carlo", "a critic of the data's own returns"),
    "qgf-n-step": _under("n-step", "a critic of returns over n steps"),
    "qgf-dqc": _under("task-dqc", "a critic of longer chunks, distilled to the policy's"),
    "qgf-emaq": _under("emaq", "a critic of the best of a few cloned actions"),
    "gradstep": Method(
        "test-time",
        ("policy", "critic"),
        partial(_gradstep, climbs=3),
        "gradient ascent on Q from a cloned action, 3 steps of size α",
        "arXiv 2412.06685",
        tuned="α",
        weights=(0.003, 0.01, 0.03, 0.1),
        paper="α 0.01, 3 steps (scene 5)",
    ),
    "robust-q": _extra(
        ("policy", "critic", "robust-q"),
        _network(robust_q, "robust-q"),
        "∇ of a Q trained on noisy actions, at the noisy action",
    ),
    "qgf-distill": _extra(
        ("policy", "critic", "distill"),
        _network(qgf_distill, "distill"),
        "qgf-chain with the chain distilled into one network",
    ),
    "qgf-jacobian-distill": _extra(
        ("policy", "critic", "distill"),
        _network(qgf_jacobian_distill, "distill"),
        "the same with that network's Jacobian",
    ),
    "cfgrl": Method(
        "extra network",
        ("cfgrl",),
        _branches("cfgrl"),
        "a flow's branch for positive advantages against its unconditional one",
        "arXiv 2505.23458",
        weights=(1.0, 2.0, 3.0, 5.0),
        paper="w of 1, 2, 3, 5, 10, 15",
    ),
    "fql": _trained(
        ("fql",),
        _one_step("fql"),
        "a one-step actor near the cloned flow that maximizes Q",
        "arXiv 2502.02538",
        paper="bc_weight 1000 (scene 300)",
    ),
    "edp": _trained(
        ("edp",),
        unguided("edp"),
        "a flow that is cloned and maximizes Q at its one-step clean action",
        "arXiv 2305.20081",
        paper="bc_weight 100 (puzzle-4x4, cube-quadruple 300, scene 30)",
    ),
    "qam": _trained(
        ("qam",),
        unguided("qam"),
        "a flow fine-tuned by adjoint matching through the cloned flow",
        "arXiv 2601.14234",
        paper="temperature 0.1",
    ),
    "qam-bootstrapped": _trained(
        ("qam",),
        unguided("qam"),
        "qam with a critic that bootstraps from its own actions",
        "arXiv 2601.14234",
        paper="temperature 0.1",
        critic="bootstrapped",
    ),
    "dac": _trained(
        ("dac",),
        _diffusion("dac"),
        "a diffusion policy whose noise prediction is pushed along ∇Q",
        "arXiv 2405.20555",
        paper="bc_weight 100 (puzzle-4x4 300)",
        stochastic=True,
    ),
    "qsm-bc": _trained(
        ("qsm-bc",),
        _diffusion("qsm-bc"),
        "a diffusion policy that is cloned and matches the score ∇Q",
        "arXiv 2312.11752",
        paper="temperature 0.1, bc_weight 10",
        stochastic=True,
    ),
}
"""all methods by name"""

ALIASES = {"ood": "qfql"}


def format_methods() -> str:
    """Return a table of all methods, as `qgf methods` prints it."""
    head = ("method", "kind", "trains", "tuned by", "idea", "reference")
    rows = [head]
    for name, method in METHODS.items():
        tuned = [method.tuned + " of " + ", ".join(f"{w:g}" for w in method.weights)]
        tuned = tuned if method.weights else []
        if method.samples != (1,):
            tuned.append("N of " + ", ".join(map(str, method.samples)))
        if method.paper:
            tuned.append(f"paper: {method.paper}")
        rows.append(
            (
                name,
                method.kind,
                ", ".join(kinds_of(method).values()),
                "; ".join(tuned),
                method.idea,
                method.reference,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
