"""Training: one trainer for every mechanism, the tasks it is given, and the small models that experiments train."""

from bsbr.training.heads import Classifier, LanguageModel
from bsbr.training.runs import Run, fit
from bsbr.training.settings import Settings
from bsbr.training.trainer import evaluate, token_losses, train

__all__ = ["Classifier", "LanguageModel", "Run", "Settings", "evaluate", "fit", "token_losses", "train"]
