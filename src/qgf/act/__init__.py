"""Policies that act, and episodes."""

from qgf.act.calibration import (
    auto_weight as auto_weight,
    flow_sizes as flow_sizes,
    guidance_scale as guidance_scale,
)
from qgf.act.policy import (
    Policy as Policy,
    load as load,
    noise_size as noise_size,
    sample_actions as sample_actions,
)
from qgf.act.rollout import (
    Arm as Arm,
    Job as Job,
    Outcome as Outcome,
    actor as actor,
    make_jobs as make_jobs,
    roll_out as roll_out,
)
