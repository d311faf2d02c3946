"""What a method is, and the table of all methods."""

from qgf.methods.table import (
    BEST_OF as BEST_OF,
    CLONED as CLONED,
    GUIDANCE as GUIDANCE,
    GUIDED as GUIDED,
    METHODS as METHODS,
    Bound as Bound,
    Learners as Learners,
    Method as Method,
    bind as bind,
    denoising_steps as denoising_steps,
    find_method as find_method,
    format_methods as format_methods,
    kinds_of as kinds_of,
    settings as settings,
)
