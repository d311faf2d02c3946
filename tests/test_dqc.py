"""Decoupled Q-chunking against NumPy, and on a ring whose shortest paths are known."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import ring
from learning import configured, normal

from qgf.config import Spec
from qgf.data.goals import FAR, GoalBatch
from qgf.errors import UserError
from qgf.learners.dqc import DQC

KEY = jax.random.key(3)
SPEC = Spec(obs=4, action=3, chunk=2, goal=2)
HORIZON, DISCOUNT = 3, 0.9


@functools.cache
def example(**settings):
    """A learner with a target of its own, and a batch with all kinds of distances."""
    settings = {"width": 16, "depth": 1, "discount": DISCOUNT, "chunk": 2} | settings
    config = configured(
        DQC, critic_chunk=HORIZON, backup_level=0.7, distill_expectile=0.6, **settings
    )
    create = eqx.filter_jit(DQC.create)
    learner, other = (create(SPEC, config, jax.random.key(seed)) for seed in (0, 9))
    assert eqx.tree_equal(learner.q, learner.target_q)
    batch = GoalBatch(
        obs=normal(8, 4),
        action=normal(8, 6, seed=1),
        next_obs=normal(8, 4, seed=2),
        goal=normal(8, 2, seed=3),
        distance=jnp.array([0, 1, 2, 3, 4, 40, FAR, 3]),
        long_action=normal(8, 9, seed=4),
        long_next_obs=normal(8, 4, seed=5),
        whole=jnp.array([1.0, 1, 1, 1, 1, 0, 1, 0]),
    )
    return eqx.tree_at(lambda x: x.target_q, learner, other.q), batch


def members(ensemble, *parts):
    return np.stack([reference.mlp(member, *parts)[:, 0] for member in ensemble.members])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cross_entropy(logit, target):
    p = sigmoid(logit)
    return -target * np.log(p) - (1 - target) * np.log(1 - p)


def expected_metrics(learner, batch):
    """The losses and mean values in float64, as the paper writes them."""
    hyper, whole = learner.hyper, np.asarray(batch.whole, np.float64)
    how = hyper.aggregation, hyper.kappa
    pool = lambda logits: reference.aggregate(sigmoid(logits), *how)  # noqa: E731
    next_v = sigmoid(reference.mlp(learner.v.mlp, batch.long_next_obs, batch.goal)[:, 0])
    backup = np.zeros(8)
    for i, distance in enumerate(np.asarray(batch.distance)):
        reached = distance <= HORIZON
        backup[i] = DISCOUNT**distance if reached else DISCOUNT**HORIZON * next_v[i]
    metrics, target, level = {}, backup, 0.5
    if hyper.chunk_critic:
        chunk_q = members(learner.chunk_q, batch.obs, batch.goal, batch.long_action)
        metrics["chunk_loss"] = (whole * cross_entropy(chunk_q, backup)).mean()
        metrics["chunk_q"] = sigmoid(chunk_q).mean()
        target, level = pool(chunk_q), 0.6
    q = members(learner.q, batch.obs, batch.goal, batch.action)
    weight = np.where(target >= sigmoid(q), level, 1 - level)
    metrics["critic_loss"] = (whole * weight * cross_entropy(q, target)).mean()
    target_q = pool(members(learner.target_q, batch.obs, batch.goal, batch.action))
    v = reference.mlp(learner.v.mlp, batch.obs, batch.goal)[:, 0]
    weight = np.where(target_q >= sigmoid(v), 0.7, 1 - 0.7)
    error = abs(np.log(target_q / (1 - target_q)) - v)
    if hyper.backup == "expectile":
        error = cross_entropy(v, target_q)
    metrics["value_loss"] = (whole * weight * error).mean()
    return metrics | {"q": sigmoid(q).mean(), "v": sigmoid(v).mean()}


@pytest.mark.parametrize(
    "backup, chunk_critic, aggregation, kappa, ensemble",
    [
        ("quantile", True, "min", 0.0, 2),
        ("quantile", False, "mean", 0.0, 2),
        ("expectile", True, "mean", 0.0, 3),
        ("expectile", False, "min", 0.0, 3),
        ("quantile", True, "mean", 0.5, 3),
    ],
)
def test_loss_equals_numpy(backup, chunk_critic, aggregation, kappa, ensemble):
    settings = {"aggregation": aggregation, "kappa": kappa, "ensemble": ensemble}
    learner, batch = example(backup=backup, chunk_critic=chunk_critic, **settings)
    assert (learner.chunk_q is not None) == chunk_critic
    expected = expected_metrics(learner, batch)
    loss, metrics = eqx.filter_jit(lambda x: x.loss(batch, KEY, {}))(learner)
    assert {k: float(m) for k, m in metrics.items()} == pytest.approx(expected, rel=1e-4)
    total = sum(value for name, value in expected.items() if name.endswith("loss"))
    assert float(loss) == pytest.approx(total, rel=1e-4)


def size(tree):
    return max((float(abs(leaf).max()) for leaf in jax.tree.leaves(tree)), default=0.0)


@pytest.mark.parametrize("backup, chunk_critic", [("quantile", True), ("expectile", False)])
def test_each_loss_trains_one_network_alone(backup, chunk_critic):
    learner, batch = example(backup=backup, chunk_critic=chunk_critic)
    trained = {"critic_loss": "q", "value_loss": "v"}
    if chunk_critic:
        trained["chunk_loss"] = "chunk_q"

    @eqx.filter_jit
    def gradients(learner):
        losses = lambda x: {name: x.loss(batch, KEY, {})[1][name] for name in trained}  # noqa: E731
        return eqx.filter_jacrev(losses)(learner)

    for loss, gradient in gradients(learner).items():
        for name in ("chunk_q", "q", "target_q", "v"):
            reached = size(getattr(gradient, name))
            assert reached > 1e-3 if name == trained[loss] else reached == 0


@pytest.mark.parametrize("chunk_critic", [True, False])
def test_chunks_that_are_not_whole_do_not_count(chunk_critic):
    learner, batch = example(chunk_critic=chunk_critic)
    cut = (batch.whole == 0)[:, None]
    gradient = eqx.filter_jit(eqx.filter_grad(lambda x, b: x.loss(b, KEY, {})[0]))
    fields = ("obs", "action", "goal", "long_action", "long_next_obs")
    other = batch._replace(**{f: jnp.where(cut, 5.0, getattr(batch, f)) for f in fields})
    same, changed = gradient(learner, batch), gradient(learner, other)
    assert size(jax.tree.map(jnp.subtract, same, changed)) == 0
    counted = gradient(learner, batch._replace(whole=jnp.ones(8)))
    assert size(jax.tree.map(jnp.subtract, same, counted)) > 1e-3


@pytest.mark.parametrize("aggregation, kappa", [("min", 0.0), ("mean", 0.0), ("mean", 9.0)])
def test_extreme_values_leave_the_gradient_finite(aggregation, kappa):
    learner, batch = example(aggregation=aggregation, kappa=kappa)
    gradient = eqx.filter_jit(eqx.filter_value_and_grad(lambda x: x.loss(batch, KEY, {})[0]))
    last = lambda x: [m.biases[-1] for q in (x.chunk_q, x.q, x.target_q) for m in q.members]  # noqa: E731
    for bias in (1e3, -1e3, 0.0):
        far = eqx.tree_at(last, learner, replace_fn=lambda x, b=bias: x + b)
        loss, gradients = gradient(far)
        assert np.isfinite(float(loss)) and np.isfinite(size(gradients))


@pytest.mark.parametrize(
    "aggregation, kappa, ensemble", [("min", 0.0, 2), ("mean", 0.0, 3), ("mean", 0.5, 3)]
)
def test_the_critic_of_goals_and_its_gradient(aggregation, kappa, ensemble):
    learner, batch = example(aggregation=aggregation, kappa=kappa, ensemble=ensemble)

    def logit(action, obs=batch.obs, goal=batch.goal):
        return reference.aggregate(members(learner.target_q, obs, goal, action), aggregation, kappa)

    critic = learner.bind(batch.obs, batch.goal)
    sums = jax.jit(jax.value_and_grad(lambda a: critic(a).sum()))
    total, gradient = sums(batch.action)
    assert float(total) == pytest.approx(logit(batch.action).sum(), rel=1e-5)
    expected = reference.finite_differences(logit, batch.action)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)
    assert abs(expected).max() > 0.01

    # n samples of every row, as best-of-N lays them out: all rows, then all rows again.
    actions = normal(24, 6, seed=7)
    values = jax.jit(learner.bind(batch.obs, batch.goal, repeats=3))(actions)
    for i in range(24):
        row = slice(i % 8, i % 8 + 1)
        one = logit(actions[i : i + 1], batch.obs[row], batch.goal[row])
        np.testing.assert_allclose(values[i], one[0], atol=1e-5)


def test_the_critics_chunk_covers_the_policys():
    config = configured(DQC, chunk=2, critic_chunk=1)
    with pytest.raises(UserError, match=r"critic_chunk \(1\) must be at least chunk \(2\)"):
        DQC.create(SPEC, config, KEY)
    learner = DQC.create(SPEC, configured(DQC, chunk=2, critic_chunk=2, width=8, depth=1), KEY)
    assert learner.chunk_q.members[0].kernels[0].shape == learner.q.members[0].kernels[0].shape


def test_values_are_those_of_the_shortest_paths():
    """High levels pick the best of what deterministic data did: V = γ^(fewest steps)."""
    levels = {"backup_level": 0.97, "distill_expectile": 0.99}
    learner = ring.tabular(DQC, ring.config(DQC, critic_chunk=ring.LONG, **levels))
    learner = ring.learn(learner, steps=1500, rate=0.05)
    states, distance = ring.pairs()
    assert distance.max() > ring.LONG  # one chunk does not get there
    value = sigmoid(np.asarray(learner.v(states), np.float64))
    np.testing.assert_allclose(value, ring.DISCOUNT**distance, rtol=0.02)
    for network, steps in ((learner.q, ring.CHUNK), (learner.chunk_q, ring.LONG)):
        states, action, cost, best = ring.moves(steps)
        value = sigmoid(np.asarray(network(states, action), np.float64))
        truth = np.broadcast_to(ring.DISCOUNT**cost, value.shape)
        np.testing.assert_allclose(value[:, best], truth[:, best], rtol=0.03)
        # Far moves that lead away from the goal are rare in the data.
        np.testing.assert_allclose(value, truth, rtol=0.06)
