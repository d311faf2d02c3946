"""Results of `qgf eval` without playing an episode."""

from qgf.act.policy import learner_hashes
from qgf.act.rollout import Arm, Job, Outcome
from qgf.evaluation._evaluate import _arm, _summary
from qgf.run.checkpoint import find_checkpoint, load_record
from qgf.run.evaluation import SUCCESS, Evaluation, write_evaluation


def evaluation(run, chosen=0.7, *, method="qgf", samples=1, critic=None, goals=1, steps=None):
    """What `evaluate` returns when a method does best at the weight `chosen`, of a few."""
    which = find_checkpoint(run).name
    other = which if critic is None else find_checkpoint(critic).name
    group = [_arm(method, w, samples, steps) for w in sorted({0.0, 0.01, chosen})]
    cloned = Arm(steps=steps)
    arms = {"bc": [cloned], method: list(dict.fromkeys([cloned, *group]))}
    outcomes = {
        Job(arm, seed, split, episode): Outcome(arm.weight == chosen, -1.0, 100)
        for arm in arms[method]
        for seed in range(2)
        for split in ("tune", "test")
        for episode in range(2)
    }
    return Evaluation(
        env=load_record(critic or run)["env"],
        run=str(run),
        critic=None if critic is None else str(critic),
        checkpoint=int(which),
        critic_checkpoint=int(other),
        learners=learner_hashes(run, ("policy", "critic"), which, critic, other),
        training_seeds=tuple(load_record(run)["seeds"]),
        seed=0,
        episodes={"tune": 2, "test": 2},
        denoise_steps=steps,
        measure=SUCCESS,
        methods=_summary(outcomes, arms, goals),
    )


def evaluated(run, chosen=0.7, **options):
    """Write such a result to RUN/eval.json and return it."""
    result = evaluation(run, chosen, **options)
    write_evaluation(run, result)
    return result
