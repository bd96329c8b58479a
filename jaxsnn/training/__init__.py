"""Training of an experiment: steps, loop, checkpoints, metrics."""

from jaxsnn.training.devices import leave as leave
from jaxsnn.training.errors import Interrupted as Interrupted
from jaxsnn.training.errors import NonFiniteError as NonFiniteError
from jaxsnn.training.errors import TrainingError as TrainingError
from jaxsnn.training.loop import evaluate as evaluate
from jaxsnn.training.loop import reproduce as reproduce
from jaxsnn.training.loop import train_and_evaluate as train_and_evaluate
from jaxsnn.training.report import write_report as write_report
from jaxsnn.training.saved import Model as Model
from jaxsnn.training.saved import export_run as export_run
from jaxsnn.training.steps import TrainState as TrainState
from jaxsnn.training.steps import checked_step as checked_step
from jaxsnn.training.steps import create_train_state as create_train_state
from jaxsnn.training.steps import eval_step as eval_step
from jaxsnn.training.steps import train_step as train_step
from jaxsnn.training.writers import log_to_console as log_to_console
