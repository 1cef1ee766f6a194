"""What is trained on: rows that are a pure function of the part, the task's settings and their number."""

from bsbr.training.tasks.classification import Classification
from bsbr.training.tasks.pictures import Pictures
from bsbr.training.tasks.questions import Questions, ask
from bsbr.training.tasks.recall import Recall
from bsbr.training.tasks.stages import Stages
from bsbr.training.tasks.windows import Windows, corpus_windows, text_windows

__all__ = [
    "Classification",
    "Pictures",
    "Questions",
    "Recall",
    "Stages",
    "Windows",
    "ask",
    "corpus_windows",
    "text_windows",
]
