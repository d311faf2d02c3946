"""Evaluation: success of methods with intervals, settings chosen on other episodes."""

from qgf.evaluation._evaluate import (
    chosen_arms as chosen_arms,
    evaluate as evaluate,
    figures as figures,
    format_result as format_result,
)
from qgf.evaluation.statistics import (
    bootstrap_mean as bootstrap_mean,
    improvement_probability as improvement_probability,
    interquartile_mean as interquartile_mean,
    mean_over_tasks as mean_over_tasks,
    paired_difference as paired_difference,
    percentile_interval as percentile_interval,
    resample as resample,
    success_interval as success_interval,
    wilson_interval as wilson_interval,
)
