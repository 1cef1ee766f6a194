"""What each mechanism shares over processes: one record for each, which models, formulas and tests take it from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bsbr.config import ModelConfig
from bsbr.mixers import MIXERS, Mixer
from bsbr.parallel import bsbr, deltanet, gau, linear, sliding_window
from bsbr.parallel.layout import Layout, Need
from bsbr.parallel.passing import Sent, with_earlier
from bsbr.rotary import Rotary


@dataclass(frozen=True)
class Share:
    """How one sequence of a mechanism is shared.

    Examples:
        >>> from bsbr import ModelConfig, parallel
        >>> list(parallel.SHARED)
        ['bsbr', 'linear', 'deltanet', 'sliding_window', 'gau']
        >>> [sent] = parallel.SHARED["sliding_window"].sent(ModelConfig("sliding_window", window_size=64))
        >>> sent.what, sent.numbers, sent.need
        ('key and value of a token', 512, Need(tokens=1, reach=63))
    """

    attend: Callable[..., Tensor]  # what the mixer projects, `layout` and the mixer's options -> this rank's outputs
    sent: Callable[[ModelConfig], list[Sent]]  # what that sends
    in_chunks: bool = False  # of the whole text, so that a slice has to be whole chunks
    projected: Callable[[ModelConfig], int] = lambda config: 3 * config.hidden_dim  # what a short convolution reads


SHARED: dict[str, Share] = {
    "bsbr": Share(bsbr.attend, bsbr.sent, in_chunks=True),
    "linear": Share(linear.attend, linear.sent),
    "deltanet": Share(deltanet.attend, deltanet.sent),
    "sliding_window": Share(sliding_window.attend, sliding_window.sent),
    "gau": Share(
        gau.attend, gau.sent, in_chunks=True, projected=lambda c: c.expansion * c.hidden_dim + c.key_dim
    ),
}  # fmt: skip


def check(config: ModelConfig, mixers: Sequence[Mixer] = ()) -> None:
    """Raise ValueError where a layer has no form over several processes, or an option that its form does not know."""
    for layer, name in enumerate(config.mechanisms):
        if name not in SHARED:
            raise ValueError(
                f"model must mix by mechanisms that have a sequence-parallel form ({', '.join(SHARED)}), but uses "
                f"{name!r}; run it in one process"
            )
        options = mixers[layer].options if mixers else {}
        if unknown := sorted(set(options) - set(inspect.signature(SHARED[name].attend).parameters)):
            raise ValueError(
                f"{unknown[0]} must not be an option of {name!r} over several processes, where it has no form; run it "
                f"in one"
            )


def slice_size(config: ModelConfig) -> int:
    """Tokens of which every slice but the last must be a multiple: a chunk where a layer works in chunks, else one."""
    return config.chunk_size if any(SHARED[name].in_chunks for name in config.mechanisms) else 1


def mix(mixer: Mixer, layout: Layout, x: Tensor, rotary: Rotary) -> Tensor:
    """This rank's slice of what `mixer(x, rotary)` gives for the whole sequence.

    Args:
        mixer: of a mechanism in `SHARED`; the same on every rank.
        layout: which tokens each rank holds.
        x: this rank's slice of the inputs, (batch, own_n, hidden_dim).
        rotary: the turns of its positions.

    Examples:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from bsbr import ModelConfig, mixers, parallel
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun says both
        >>> mixer = mixers.make(ModelConfig("linear", hidden_dim=32, num_heads=2))
        >>> rotary = mixers.Rotary.at(torch.arange(20)[None], mixer.rotary_dim, torch.float32)
        >>> parallel.mix(mixer, parallel.Layout(None, 0, (20,)), torch.randn(1, 20, 32), rotary).shape
        torch.Size([1, 20, 32])
        >>> dist.destroy_process_group()
    """
    inputs = None
    if mixer.short_conv is not None:
        halo = Need(1, mixer.short_conv.width - 1)
        inputs = with_earlier(layout, [(mixer.in_proj(x)[:, None], halo)])[0][:, 0]
    share = next(share for name, share in SHARED.items() if MIXERS[name] is type(mixer))
    return mixer.merge(x, share.attend(*mixer.project(x, rotary, inputs), layout=layout, **mixer.options))


def bytes_sent(
    config: ModelConfig, lengths: Sequence[int], batch: int = 1, dtype: torch.dtype = torch.float32
) -> list[tuple[int, int]]:
    """Bytes of the tensors that each rank sends for all layers, in the forward and in the backward pass, by formula.

    What a backend adds to a message is not in it, nor the one all-reduce of gradients that a training step needs.
    In the forward pass rank r sends, of each row that a later rank needs, its numbers; in the backward pass it returns
    a gradient of the same size for each row that it got.

    Args:
        config: of the model. `num_layers=1` gives the bytes of a layer.
        lengths: how many tokens each rank holds.
        batch: texts at once.
        dtype: of the model; states that are summed in float32 at least are sent so.

    Raises:
        ValueError: a mechanism that has no form over several processes.

    Examples:
        >>> from bsbr import ModelConfig, parallel
        >>> config = ModelConfig("linear", hidden_dim=128, num_heads=2, num_layers=1)
        >>> parallel.bytes_sent(config, lengths=(512, 512))  # two heads' sums of 64 · 65 numbers, one way and back
        [(33280, 0), (0, 33280)]
    """
    check(config)
    sent = []
    for name in config.mechanisms:
        sent += SHARED[name].sent(config)
        if config.short_conv is not None:
            halo = Need(1, config.short_conv - 1)
            sent.append(Sent("projected token", SHARED[name].projected(config), halo))
    wide = torch.promote_types(dtype, torch.float32).itemsize
    totals = []
    for rank in range(len(lengths)):
        layout = Layout(None, rank, tuple(lengths))
        of_row = [(one.need, batch * one.numbers * (wide if one.wide else dtype.itemsize)) for one in sent]
        forward = sum(size * sum(layout.sent(need).values()) for need, size in of_row)
        totals.append((forward, sum(size * sum(layout.received(need)) for need, size in of_row)))
    return totals
