"""Flow policies, critics and guidance: JAX and Equinox, no data, no environments."""

from qgf.core.critic import Critic as Critic, Ensemble as Ensemble, Value as Value
from qgf.core.flow import (
    FAILED as FAILED,
    FlowPolicy as FlowPolicy,
    Sampled as Sampled,
    Velocity as Velocity,
    bounded as bounded,
    euler as euler,
    euler_counting as euler_counting,
    flow_matching_loss as flow_matching_loss,
    refuse_failed as refuse_failed,
    reversed_time as reversed_time,
)
from qgf.core.guidance import (
    ESTIMATORS as ESTIMATORS,
    Action as Action,
    Estimator as Estimator,
    guided_sample as guided_sample,
    guided_sample_counting as guided_sample_counting,
    qgf as qgf,
)
from qgf.core.networks import MLP as MLP
from qgf.core.realtime import continued as continued, soft_mask as soft_mask
from qgf.core.search import best_of_n as best_of_n, gradient_steps as gradient_steps
from qgf.core.tilt import (
    policy_deviation as policy_deviation,
    tilt_schedule as tilt_schedule,
    tilted as tilted,
)
