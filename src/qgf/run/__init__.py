"""What a run is: its record, checkpoints and logs, and the training that makes it."""

from qgf.run._record import kinds_to_train as kinds_to_train
from qgf.run._update import (
    Fixed as Fixed,
    Metrics as Metrics,
    State as State,
    create_state as create_state,
    train_steps as train_steps,
)
from qgf.run._validation import (
    fields_of as fields_of,
    intact_source as intact_source,
    task_of as task_of,
    validation_batch as validation_batch,
)
from qgf.run.checkpoint import (
    find_checkpoint as find_checkpoint,
    list_checkpoints as list_checkpoints,
    load_learner as load_learner,
    load_record as load_record,
    of_seed as of_seed,
    read_config as read_config,
)
from qgf.run.evaluation import (
    SUCCESS as SUCCESS,
    Evaluation as Evaluation,
    Figures as Figures,
    MethodResult as MethodResult,
    SettingResult as SettingResult,
    choose as choose,
    read_evaluation as read_evaluation,
    write_evaluation as write_evaluation,
)
from qgf.run.run import Run as Run
from qgf.run.trainer import TrainingInterrupted as TrainingInterrupted, train as train
