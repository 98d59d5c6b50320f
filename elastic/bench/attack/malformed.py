"""Kinds of the zoo that break the rules of bytes and records."""

from __future__ import annotations

from typing import cast

import numpy as np

from elastic.bench.attack.conduct import Body, Conduct
from elastic.exchange.gather import CONTRIBUTION
from elastic.messages import ContributionHeader, RoundPlan
from elastic.reduce.sparseloco import SparseLoCo
from elastic.wire.codec import HEADER, MAGIC, VERSION, Part, SparsePayload
from elastic.wire.packing import layout, pack


class NotFinite(Conduct):
    """Levels beyond all numbers: the exponent that fp32 has for infinity and NaN."""

    def forge(self, body: Body, plan: RoundPlan, payload: bytes) -> bytes:
        return payload[: HEADER.size] + b"\xff" + payload[HEADER.size + 1 :]


class ShapeBomb(Conduct):
    """Says that its chunks are of the largest size there is, and all entries kept."""

    def forge(self, body: Body, plan: RoundPlan, payload: bytes) -> bytes:
        return HEADER.pack(MAGIC, VERSION, 2, 65536, 65536) + payload[HEADER.size :]


class RepeatedIndex(Conduct):
    """Names a place twice.

    Places are sent as gaps of at least one, so the bytes have no word for that. The nearest is a place past the end
    of its chunk, which a careless receiver would wrap around to one that was there before.
    """

    def forge(self, body: Body, plan: RoundPlan, payload: bytes) -> bytes:
        reducer = cast(SparseLoCo, body.reducer)
        decoded = reducer.decode(payload, body.session.like)
        name = max(decoded.parts, key=lambda each: len(decoded.parts[each].data))
        shape = decoded.parts[name].shape
        form = layout(shape, reducer.sparsity)
        entries = reducer.entries(decoded, name, shape)
        places = np.array(entries.indices[0])
        places[0, -1] = form.blocks[0].size + places[0, 0]
        part = Part(shape, pack(entries._replace(indices=[places, *entries.indices[1:]]), form))
        return reducer.encode(SparsePayload(decoded.sparsity, {**decoded.parts, name: part}))


class SizeBomb(Conduct):
    """Announces a thousand times what is allowed."""

    def commitment(self, body: Body, header: ContributionHeader) -> ContributionHeader:
        return header.model_copy(update={"size_bytes": 1000 * body.reducer.max_bytes(body.session.like)})


class SizeLie(Conduct):
    """Sends twice what it announced."""

    def commitment(self, body: Body, header: ContributionHeader) -> ContributionHeader:
        return header.model_copy(update={"size_bytes": header.size_bytes // 2})


class Withhold(Conduct):
    """Shows its commitment to every second peer only."""

    def posted(self, body: Body, header: ContributionHeader) -> None:
        others = sorted({*body.network.peers} - {body.id})
        body.network.show(body.id, CONTRIBUTION, header.round, None, *others[::2])


class NeverServe(Conduct):
    """Commits to a payload, and gives it to nobody: everyone waits for it."""

    serves = False
