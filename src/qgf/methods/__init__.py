"""What a method is, and the table of all methods."""

from qgf.methods.table import (
    GUIDANCE as GUIDANCE,
    METHODS as METHODS,
    Learners as Learners,
    Method as Method,
    at_goal as at_goal,
    find_method as find_method,
    format_methods as format_methods,
    kinds_of as kinds_of,
    settings as settings,
)
