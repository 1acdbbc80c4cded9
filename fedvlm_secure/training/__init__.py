"""One client's local training and evaluation."""

from fedvlm_secure.training.answers import Split, answer_logits, sample_losses
from fedvlm_secure.training.errors import TrainingError
from fedvlm_secure.training.evaluation import Evaluation, evaluate
from fedvlm_secure.training.features import precompute_image_features
from fedvlm_secure.training.local import StepInfo, TrainStats, make_optimizer, train
from fedvlm_secure.training.settings import TrainSettings

__all__ = [
    "Evaluation",
    "Split",
    "StepInfo",
    "TrainSettings",
    "TrainStats",
    "TrainingError",
    "answer_logits",
    "evaluate",
    "make_optimizer",
    "precompute_image_features",
    "sample_losses",
    "train",
]
