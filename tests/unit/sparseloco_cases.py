"""Inputs for the tests of SparseLoCo: shapes, settings and values that are hard in their own way."""

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from elastic.reduce.sparseloco import SparseLoCo

SHAPES = [
    (),
    (0,),
    (0, 5),
    (5, 0),
    (1,),
    (3,),
    (16,),
    (37,),
    (4, 4),
    (8, 12),
    (9, 10),
    (3, 21),
    (1, 40),
    (2, 3, 7),
]
SETTINGS = [(16, 4), (16, 1), (16, 16), (24, 5), (64, 3)]
RULES = ["mean", "senders"]
HARD = ["all equal", "zeros", "two values", "quieter and quieter", "one loud chunk", "bfloat16", "few at all"]

shapes = st.sampled_from(SHAPES)
densities = st.sampled_from(SETTINGS)
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(["normal", "heavy", "ties", "zeros", "tiny", "huge"])
quick = settings(max_examples=40, deadline=None)


compiled = st.booleans()


def reducer(chunk=4096, k=64, compiled=True, **fields):
    return SparseLoCo(SparseLoCo.Config(chunk=chunk, k=k, **fields), compiled)


def entries(sut, payload, like):
    """What a payload sends of the tensor "w"."""
    return sut.entries(payload, "w", like.shape)


def draw(shape, seed, kind="normal"):
    """Seeded fp32 values of a kind that is hard in its own way."""
    rng = np.random.default_rng(seed)
    values = {
        "normal": lambda: rng.standard_normal(shape),
        "heavy": lambda: rng.standard_t(2, shape) * 1e-3,
        "ties": lambda: rng.integers(-2, 3, shape).astype(float),
        "zeros": lambda: np.zeros(shape),
        "tiny": lambda: rng.standard_normal(shape) * 1e-40,
        "huge": lambda: rng.uniform(-1, 1, shape) * 3.4e38,
    }[kind]()
    return torch.from_numpy(np.asarray(values, np.float32))


def one(tensor):
    return {"w": tensor}
