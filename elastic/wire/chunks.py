"""How a tensor is cut into chunks, and what a chunk keeps.

A matrix is cut into square tiles, anything else into runs of its row-major elements. The last tiles of a row
or column and the last run may be smaller; they keep entries in the same proportion. Everything follows from
the shape, so none of it is sent.
"""

# C chunks, K kept entries of a chunk

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]


class Density(NamedTuple):
    """`k` entries are kept of every full chunk of `chunk` elements (1 ≤ k ≤ chunk ≤ 65536)."""

    chunk: int = 4096
    k: int = 64

    def kept(self, size: int) -> int:
        """Entries kept of a chunk of `size` elements: the same proportion, rounded half up, at least one."""
        return max(1, (2 * self.k * size + self.chunk) // (2 * self.chunk))

    def widest(self, kept: int) -> int:
        """The largest chunk that keeps that many: so a count alone gives the width of its code."""
        return min(self.chunk, (self.chunk * (2 * kept + 1) - 1) // (2 * self.k))


class Block(NamedTuple):
    """A grid of equal chunks inside a tensor seen as a matrix. Chunks are numbered row by row."""

    row: int
    """First row of the grid, in elements."""
    col: int
    """First column of the grid, in elements."""
    down: int
    """Chunks from top to bottom."""
    across: int
    """Chunks from left to right."""
    height: int
    """Rows of one chunk, in elements."""
    width: int
    """Columns of one chunk, in elements."""
    stride: int
    """Columns of the whole matrix."""

    @property
    def num_chunks(self) -> int:
        return self.down * self.across

    @property
    def size(self) -> int:
        """Elements of one chunk."""
        return self.height * self.width

    def slabs(self, num_chunks: int) -> Iterator[Block]:
        """The same chunks in the same order, a few rows of them at a time: about `num_chunks`."""
        step = max(1, num_chunks // self.across)
        for first in range(0, self.down, step):
            yield self._replace(row=self.row + first * self.height, down=min(step, self.down - first))

    def grid(self, flat: Array) -> Array:
        """A view of the flat tensor as (down, across, height, width)."""
        bottom, right = self.row + self.down * self.height, self.col + self.across * self.width
        tile = flat.reshape(-1, self.stride)[self.row : bottom, self.col : right]
        return tile.reshape(self.down, self.height, self.across, self.width).transpose(0, 2, 1, 3)

    def positions(self, indices_CK: Array) -> Array:
        """Places in the flat tensor (C, K), int64, of entries given by their places in each chunk."""
        tile_row_C, tile_col_C = np.divmod(np.arange(self.num_chunks), self.across)
        corner_C = (self.row + tile_row_C * self.height) * self.stride + self.col + tile_col_C * self.width
        rows_down_CK = (indices_CK // self.width).astype(np.int64)
        positions_CK: Array = corner_C[:, None] + indices_CK + rows_down_CK * (self.stride - self.width)
        return positions_CK


def blocks(shape: Sequence[int], chunk: int) -> list[Block]:
    """The chunks of a tensor of that shape, in the order of the payload's rows; none if it is empty.

    Matrices have tiles of √chunk × √chunk if chunk is a square number: at most four blocks (inner, right
    edge, bottom edge, corner). Other shapes, scalars included, are one row cut into runs of `chunk`.
    """
    side = math.isqrt(chunk)
    tiled = len(shape) == 2 and side * side == chunk
    num_rows, num_cols = (shape[0], shape[1]) if tiled else (1, math.prod(shape))
    height, width = (side, side) if tiled else (1, chunk)
    return [
        Block(row, col, down, across, tile_height, tile_width, num_cols)
        for row, down, tile_height in _spans(num_rows, height)
        for col, across, tile_width in _spans(num_cols, width)
    ]


def _spans(length: int, step: int) -> list[tuple[int, int, int]]:
    """A length cut into steps: (start, how many, step) of the full ones, then of the rest if there is one."""
    full, rest = divmod(length, step)
    spans = [(0, full, step), (full * step, 1, rest)]
    return [span for span in spans if span[1] * span[2] > 0]


class Rows(NamedTuple):
    """What chunks of one block keep, in numpy."""

    indices_CK: Array
    """int32, place in the chunk, strictly increasing along K."""
    codes_CK: Array
    """uint8: bit 0 chooses the upper magnitude level, bit 1 is the sign (1 = negative)."""
    levels_C2: Array
    """uint16, the bits of two bfloat16 numbers: the magnitude levels, finite, 0 ≤ lower ≤ upper."""

    def values(self) -> Array:
        """What the entries stand for (C, K), fp32."""
        levels_C2 = widen(self.levels_C2)
        magnitudes_CK = np.where(self.codes_CK & 1, levels_C2[:, 1:], levels_C2[:, :1])
        return np.where(self.codes_CK & 2, -magnitudes_CK, magnitudes_CK)


def widen(bits: Array) -> Array:
    """bfloat16 bits (uint16) → the same numbers in fp32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_fields(parts: Sequence[Rows]) -> dict[str, Tensor]:
    """Rows of a tensor's blocks → its part of a payload.

    "indices" (C, K) int32, "values" (C, K) uint8 codes, "levels" (C, 2) bfloat16; K is that of the largest
    chunk, and smaller chunks are filled up with index −1 and code 0. An empty tensor has C = K = 0.
    """
    kept = max((part.indices_CK.shape[1] for part in parts), default=0)
    num_chunks = sum(len(part.indices_CK) for part in parts)
    indices_CK = np.full((num_chunks, kept), -1, np.int32)
    codes_CK = np.zeros((num_chunks, kept), np.uint8)
    levels_C2 = np.zeros((num_chunks, 2), np.uint16)
    start = 0
    for part in parts:
        stop, width = start + len(part.indices_CK), part.indices_CK.shape[1]
        indices_CK[start:stop, :width], codes_CK[start:stop, :width] = part.indices_CK, part.codes_CK
        levels_C2[start:stop] = part.levels_C2
        start = stop
    levels = torch.from_numpy(levels_C2.view(np.int16)).view(torch.bfloat16)
    return {"indices": torch.from_numpy(indices_CK), "values": torch.from_numpy(codes_CK), "levels": levels}


def from_fields(fields: Mapping[str, Tensor]) -> Rows:
    """A tensor's part of a payload in numpy, filling included; shares memory."""
    levels_C2 = fields["levels"].contiguous().view(torch.int16).numpy().view(np.uint16)
    return Rows(fields["indices"].numpy(), fields["values"].numpy(), levels_C2)


def cut_rows(rows: Rows, start: int, stop: int, kept: int) -> Rows:
    """Some rows without their filling."""
    return Rows(rows.indices_CK[start:stop, :kept], rows.codes_CK[start:stop, :kept], rows.levels_C2[start:stop])
