"""What is read off a backbone: the next token, or the class of the whole text. Each returns sums over its targets.

Sums, not means: parts of a batch in several processes or one after the other have unlike numbers of targets, and only
the trainer knows how many there are in all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

IGNORED = -100  # the label of a position that is no target
POOLINGS = ("mean", "last")


class Score(NamedTuple):
    """Sums over the targets of a batch.

    Examples:
        >>> import torch
        >>> from bsbr.training.heads import Score
        >>> score = Score(loss=torch.tensor(6.0), right=torch.tensor(2.0), targets=torch.tensor(4.0))
        >>> float(score.loss / score.targets), float(score.right / score.targets)  # mean loss and accuracy
        (1.5, 0.5)
    """

    loss: Float[Tensor, ""]  # cross-entropy in nats
    right: Float[Tensor, ""]  # targets that were the likeliest class
    targets: Float[Tensor, ""]  # how many there are


class LanguageModel(nn.Module):
    """The next token, from a `TransformerLM`: `labels` hold, at each position, the token that follows, or IGNORED.

    Args:
        model: the backbone, a `TransformerLM`.

    Examples:
        >>> import torch
        >>> from bsbr import ModelConfig, TransformerLM
        >>> from bsbr.training import LanguageModel
        >>> config = ModelConfig("bsbr", vocab_size=32, hidden_dim=16, num_layers=1, num_heads=2, ff_dim=16)
        >>> learner = LanguageModel(TransformerLM(config))
        >>> ids = torch.randint(32, (2, 21))
        >>> score = learner(ids[:, :-1], ids[:, 1:])
        >>> float(score.targets)
        40.0
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Int[Tensor, "batch n"],
        labels: Int[Tensor, "batch n"],
        attention_mask: Tensor | None = None,
    ) -> Score:
        """Cross-entropy of the targets. Logits are computed at these alone.

        Args:
            input_ids: the texts.
            labels: at each position the token that follows, or −100 where it does not count.
            attention_mask: 1 for a token and 0 for padding; None where there is no padding.
        """
        hidden = self.model.encode(input_ids, attention_mask)
        wanted = labels != IGNORED
        return score(F.linear(hidden[wanted], self.model.embedding.weight), labels[wanted])


class Classifier(nn.Module):
    """The class of a text, from a `TransformerLM`: a linear layer over its pooled last hidden states.

    Args:
        model: the backbone.
        classes: how many there are.
        pooling: `"mean"` over the real tokens, or the `"last"` of them, which has read all.

    Raises:
        ValueError: `pooling` is neither, or `classes` is below 2.

    Examples:
        >>> import torch
        >>> from bsbr import ModelConfig, TransformerLM
        >>> from bsbr.training import Classifier
        >>> model = TransformerLM(ModelConfig("bsbr", vocab_size=32, hidden_dim=16, num_heads=2, ff_dim=16))
        >>> learner = Classifier(model, classes=3)
        >>> ids, labels = torch.randint(32, (2, 20)), torch.tensor([0, 2])
        >>> float(learner(ids, labels).targets)
        2.0
        >>> learner.logits(ids).shape
        torch.Size([2, 3])
    """

    def __init__(self, model: Any, classes: int, pooling: str = "mean") -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, but is {pooling!r}")
        if classes < 2:
            raise ValueError(f"classes must be ≥ 2, but is {classes}")
        self.model, self.pooling = model, pooling
        self.output = nn.Linear(model.config.hidden_dim, classes)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def forward(
        self,
        input_ids: Int[Tensor, "batch n"],
        labels: Int[Tensor, " batch"],
        attention_mask: Int[Tensor, "batch n"] | None = None,
    ) -> Score:
        """Cross-entropy of the classes `labels`.

        Args:
            input_ids: the texts.
            labels: the class of each.
            attention_mask: 1 for a token and 0 for padding; None where there is no padding.
        """
        return score(self.logits(input_ids, attention_mask), labels)

    def logits(
        self, input_ids: Int[Tensor, "batch n"], attention_mask: Int[Tensor, "batch n"] | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Scores of the classes.

        Args:
            input_ids: the texts.
            attention_mask: 1 for a token and 0 for padding; None where there is no padding.
        """
        hidden = self.model.encode(input_ids, attention_mask)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        if self.pooling == "mean":  # padding is zero in what `encode` returns
            return self.output(hidden.sum(1) / real.sum(1, keepdim=True))
        places = torch.arange(real.shape[1], device=real.device)
        last = (real * places).argmax(1)
        return self.output(hidden[torch.arange(len(hidden), device=hidden.device), last])


def score(logits: Float[Tensor, "targets classes"], labels: Int[Tensor, " targets"]) -> Score:
    """Sums over targets, in float32 whatever the logits are in."""
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    right = (logits.argmax(-1) == labels).sum()
    return Score(loss, right.float(), torch.tensor(float(len(labels)), device=labels.device))
