"""How tensors are cut."""

import itertools
import math

import numpy as np
import pytest
import sparseloco_reference as reference
from hypothesis import given
from hypothesis import strategies as st
from sparseloco_cases import densities, quick, shapes

from elastic.wire.chunks import Sparsity, blocks


@pytest.mark.parametrize(
    ("shape", "sizes"), [((), [1]), ((0, 3), []), ((130, 64), [4096, 128]), ((5000,), [4096, 904])]
)
def test_chunks_cover_odd_shapes(shape, sizes):
    assert [block.size for block in blocks(shape, Sparsity())] == sizes


@quick
@given(shapes, densities)
def test_every_element_is_in_exactly_one_chunk(shape, density):
    # given / when
    places = [
        block.positions(np.tile(np.arange(block.size, dtype=np.int32), (block.num_chunks, 1)))
        for block in blocks(shape, Sparsity(*density))
    ]
    flat = [row.tolist() for positions in places for row in positions]
    # then
    assert flat == reference.chunks(shape, density[0])
    assert sorted(itertools.chain.from_iterable(flat)) == list(range(math.prod(shape)))


@quick
@given(st.integers(1, 300), st.data())
def test_kept_is_the_same_proportion_of_any_chunk(chunk, data):
    # given
    sparsity = Sparsity(chunk, data.draw(st.integers(1, chunk)))
    size = data.draw(st.integers(1, chunk))
    # when / then
    assert sparsity.kept(size) == reference.num_kept(size, *sparsity[:2])
    assert 1 <= sparsity.kept(size) <= size
