"""Many methods on many tasks under one protocol, each piece made once."""

from qgf.comparison._compare import compare as compare
from qgf.comparison._costs import count as count, milliseconds as milliseconds
from qgf.comparison._flops import operations as operations
from qgf.comparison._trainings import (
    Plan as Plan,
    learners as learners,
    other_critics as other_critics,
    run_folder as run_folder,
    spec as spec,
    train_all as train_all,
    train_to_end as train_to_end,
    trained as trained,
    training as training,
    trainings as trainings,
)
from qgf.comparison.leaderboard import markdown as markdown, sections as sections
from qgf.comparison.protocol import (
    STATES as STATES,
    Setting as Setting,
    Variant as Variant,
    check_facts as check_facts,
    check_task as check_task,
    kinds_compared as kinds_compared,
    opinions as opinions,
    read_episodes as read_episodes,
    run_episodes as run_episodes,
    variant as variant,
)
