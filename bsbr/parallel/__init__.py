"""One sequence over several processes: each rank of a `torch.distributed` group holds a slice of its tokens.

Everything in a model but its mixers treats tokens one by one, so a rank does that for its own slice alone. What a
rank's mixer needs of earlier ranks is little where a mechanism keeps a state or a window, and `SHARED` says for each
such mechanism what that is. It needs nothing of later ranks, since no token sees the future. So a layer sends once, to
later ranks only, and its backward pass returns the gradients of what was sent, to earlier ranks only. With `short_conv`
it sends a second time, before that: the last projected tokens, which the convolution of the next rank reads. No rank
waits for another one's result: all work on their slices, send, and put what came together. The result is that of one
process, gradients included.

Ranks hold contiguous slices in rank order. Where a mechanism works in chunks of the whole text, they are whole chunks,
but for the last, which may end anywhere.

    own = parallel.shard(text, model.config)  # this rank's inputs, and the token after each
    logits = parallel.logits(model, own.inputs)
    loss = F.cross_entropy(logits.flatten(0, 1), own.targets.flatten(), reduction="sum") / own.tokens
    loss.backward()  # on every rank
    parallel.sum_gradients(model)
"""

from bsbr.parallel.bsbr import attend
from bsbr.parallel.layout import Group, Layout, Need
from bsbr.parallel.models import Shard, encode, logits, part, shard, sum_gradients
from bsbr.parallel.passing import exchange, with_earlier
from bsbr.parallel.shared import SHARED, Share, bytes_sent, mix

__all__ = [
    "SHARED",
    "Group",
    "Layout",
    "Need",
    "Shard",
    "Share",
    "attend",
    "bytes_sent",
    "encode",
    "exchange",
    "logits",
    "mix",
    "part",
    "shard",
    "sum_gradients",
    "with_earlier",
]
