"""One client's local training and evaluation."""

from fedvlm_secure.training.answers import Split, answer_logits, sample_losses
from fedvlm_secure.training.errors import TrainingError
from fedvlm_secure.training.evaluation import Evaluation, evaluate, row_losses
from fedvlm_secure.training.features import precompute_image_features
from fedvlm_secure.training.local import StepInfo, TrainStats, make_optimizer, train
from fedvlm_secure.training.private import PrivateTrainStats, train_private
from fedvlm_secure.training.settings import PrivateSettings, TrainSettings
from fedvlm_secure.training.soundness import Finding, check_model

__all__ = [
    "Evaluation",
    "Finding",
    "PrivateSettings",
    "PrivateTrainStats",
    "Split",
    "StepInfo",
    "TrainSettings",
    "TrainStats",
    "TrainingError",
    "answer_logits",
    "check_model",
    "evaluate",
    "make_optimizer",
    "precompute_image_features",
    "row_losses",
    "sample_losses",
    "train",
    "train_private",
]
