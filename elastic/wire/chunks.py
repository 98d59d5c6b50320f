"""How a tensor is cut into chunks, and what a chunk keeps.

A matrix is cut into square tiles, anything else into runs of its row-major elements. The last tiles of a row
or column and the last run may be smaller; they keep entries in the same proportion. Everything follows from
the shape, so none of it is sent.
"""

# C chunks, K kept entries of a chunk

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Sparsity(NamedTuple):
    """`k` entries are kept of every full chunk of `chunk` elements (1 ≤ k ≤ chunk ≤ 65536), `bits` bits each."""

    chunk: int = 4096
    k: int = 64
    bits: int = 2
    """2: sign and a choice of two magnitude levels; 1: sign only."""

    def kept(self, size: int) -> int:
        """Entries kept of a chunk of `size` elements: the same proportion, rounded half up, at least one."""
        return max(1, (2 * self.k * size + self.chunk) // (2 * self.chunk))


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
    kept: int
    """Entries kept of each chunk."""
    rice: int
    """Bits of a gap between two entries that are written as they are; see `packing`."""

    @property
    def num_chunks(self) -> int:
        return self.down * self.across

    @property
    def num_entries(self) -> int:
        return self.num_chunks * self.kept

    @property
    def size(self) -> int:
        """Elements of one chunk."""
        return self.height * self.width

    def grid(self, flat: Any) -> Any:
        """A view of the flat tensor (numpy or torch) as (down, height, across, width)."""
        bottom, right = self.row + self.down * self.height, self.col + self.across * self.width
        tile = flat.reshape(-1, self.stride)[self.row : bottom, self.col : right]
        return tile.reshape(self.down, self.height, self.across, self.width)

    def positions(self, indices_CK: Array) -> Array:
        """Places in the flat tensor (C, K), int64, of entries given by their places in each chunk."""
        tile_row_C, tile_col_C = np.divmod(np.arange(self.num_chunks), self.across)
        corner_C = (self.row + tile_row_C * self.height) * self.stride + self.col + tile_col_C * self.width
        rows_down_CK = (indices_CK // self.width).astype(np.int64)
        positions_CK: Array = corner_C[:, None] + indices_CK + rows_down_CK * (self.stride - self.width)
        return positions_CK


@lru_cache(maxsize=4096)
def blocks(shape: tuple[int, ...], sparsity: Sparsity) -> tuple[Block, ...]:
    """The chunks of a tensor of that shape, in the order of the payload; none if it is empty.

    Matrices have tiles of √chunk × √chunk if chunk is a square number: at most four blocks (inner, right
    edge, bottom edge, corner). Other shapes, scalars included, are one row cut into runs of `chunk`.
    """
    side = math.isqrt(sparsity.chunk)
    tiled = len(shape) == 2 and side * side == sparsity.chunk
    num_rows, num_cols = (shape[0], shape[1]) if tiled else (1, math.prod(shape))
    height, width = (side, side) if tiled else (1, sparsity.chunk)
    found = []
    for row, down, tile_height in _spans(num_rows, height):
        for col, across, tile_width in _spans(num_cols, width):
            size = tile_height * tile_width
            kept = sparsity.kept(size)
            found.append(
                Block(row, col, down, across, tile_height, tile_width, num_cols, kept, rice_parameter(size, kept))
            )
    return tuple(found)


def rice_parameter(size: int, kept: int) -> int:
    """The number of plain bits for the gaps between `kept` random places of `size`, in integers only.

    Such gaps are nearly geometric; the best divisor is about ln 2 (45/64) times their mean (Gallager and van Voorhis
    1975), and we take the power of two below it: the best for 32, 64, 128 or 256 of 4096, at worst some percent off.
    """
    return max(0, ((size - kept) * 45 // ((kept + 1) * 64)).bit_length() - 1)


def _spans(length: int, step: int) -> list[tuple[int, int, int]]:
    """A length cut into steps: (start, how many, step) of the full ones, then of the rest if there is one."""
    full, rest = divmod(length, step)
    spans = [(0, full, step), (full * step, 1, rest)]
    return [span for span in spans if span[1] * span[2] > 0]
