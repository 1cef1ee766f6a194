"""Tokens brought together by what they have chosen, so that each chunk meets those that read it in dense products.

The tokens that have chosen a chunk stand in tiles of equal size, the last of which is filled up. How many tiles there
are does not depend on the choices: there is room for the worst of them, one tile not full for each chunk. So shapes,
operations and the order of sums depend on sizes alone, and no token's output on the choices of later ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def tile_size(chunk_size: int) -> int:
    """Tokens of a tile: fewer leave less room unused, too few waste the processor."""
    return max(chunk_size // 4, 16)


def pair_count(n: int, chunk_size: int, choices: int) -> int:
    """How often a token of n reads an earlier chunk, if each reads `choices` of them or all there are."""
    return sum(
        min(chunk_size, n - start) * min(start // chunk_size, choices) for start in range(chunk_size, n, chunk_size)
    )


def tile_count(n: int, chunk_size: int, choices: int) -> int:
    """Tiles that hold all pairs however they are spread over the chunks: Σ_j ⌈m_j / T⌉ ≤ Σ_j (m_j + T − 1) / T."""
    size, earlier = tile_size(chunk_size), -(-n // chunk_size) - 1
    return (pair_count(n, chunk_size, choices) + earlier * (size - 1)) // size


class Tiles(NamedTuple):
    """Where tokens stand in tiles. All numbers count through the rows: a token is row · n + t, a chunk row · C + j.

    In a place that is not taken stands a row's first token, whose output there no token asks for.
    """

    tokens: Int[Tensor, "rows tiles_and_places"]
    chunks: Int[Tensor, " rows_and_tiles"]
    places: Int[Tensor, "rows n_and_choices"]  # of each token's choices
    there: Bool[Tensor, "n choices"]  # whether there is such a choice

    @classmethod
    def of(
        cls, chosen: Int[Tensor, "rows n choices"], there: Bool[Tensor, "n choices"], chunks: int, chunk_size: int
    ) -> Tiles:
        """From the chunks that each token of n has chosen, none later than the one before its own."""
        rows, n, choices = chosen.shape
        size, tiles = tile_size(chunk_size), tile_count(n, chunk_size, choices)
        row = torch.arange(rows, device=chosen.device)[:, None]
        # By chunk, and within a chunk by token; what is not there comes last and is left out.
        by_chunk, pairs = chosen.masked_fill(~there, chunks).flatten(1).sort(dim=1, stable=True)
        count = pair_count(n, chunk_size, choices)
        by_chunk, pairs = by_chunk[:, :count].contiguous(), pairs[:, :count]
        first = torch.searchsorted(by_chunk, torch.arange(chunks + 1, device=chosen.device).expand(rows, -1).contiguous())
        behind = ((first.diff(dim=1) + size - 1) // size).cumsum(1)  # the tile behind the last of each chunk
        begin = behind - (first.diff(dim=1) + size - 1) // size
        rank = torch.arange(count, device=chosen.device) - first.gather(1, by_chunk)
        place = begin.gather(1, by_chunk) * size + rank
        tokens = row.new_zeros(rows, tiles * size).scatter(1, place, pairs // choices)
        places = row.new_zeros(rows, n * choices).scatter(1, pairs, place)
        each = torch.arange(tiles, device=chosen.device).expand(rows, -1).contiguous()
        of_tile = torch.searchsorted(behind, each, right=True).clamp(max=chunks - 1)
        return cls(tokens + row * n, (of_tile + row * chunks).flatten(), places + row * tiles * size, there)

    def gather(self, x: Float[Tensor, "rows n dim"]) -> Float[Tensor, "rows_and_tiles places dim"]:
        """What each token brings, in its places."""
        found = x.flatten(0, 1).index_select(0, self.tokens.flatten())
        return found.view(len(self.chunks), -1, x.shape[-1])

    def by_token(
        self,
        values: Float[Tensor, "rows_and_tiles places dim"],
        sums: Float[Tensor, "rows_and_tiles places 1"],
        greatest: Float[Tensor, "rows_and_tiles places 1"],
    ) -> list[Tensor]:
        """What was read in its places, (rows, n, choices, …) each; where there is no choice, the greatest score is −∞."""
        shape = (len(self.tokens), *self.there.shape, -1)
        values, sums, greatest = (
            x.flatten(0, 1).index_select(0, self.places.flatten()).view(shape) for x in (values, sums, greatest)
        )
        return [values, sums, greatest.masked_fill(~self.there[..., None], -torch.inf)]


def pieces_of(
    x: Float[Tensor, "rows_and_chunks chunk_size dim"], chunks: Int[Tensor, " tiles"], size: int
) -> Iterable[Float[Tensor, "size chunk_size dim"]]:
    """The chunks of the tiles, `size` of them at a time.

    Where there will be gradients all are gathered at once, since the gradient of each gathering is as large as x.
    """
    if x.requires_grad and torch.is_grad_enabled():
        return x.index_select(0, chunks).split(size)
    return (x.index_select(0, part) for part in chunks.split(size))
