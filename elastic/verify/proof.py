"""Proof of holding the anchor: a hash over blocks of it that are chosen anew for each peer and round.

It can be made only by whoever holds this anchor now, and is checked by anyone else who does, for the price of about a
megabyte read and hashed. Templar's sync check compared two numbers per tensor that peers published themselves: an
idler could copy them (facts of that run in docs/scoring.md).
"""

import hashlib
import mmap
import struct
from pathlib import Path

from elastic.errors import StateError
from elastic.messages import Digest, PeerId, RoundPlan

BLOCKS = 1024
BLOCK_BYTES = 1024
"""An anchor of less than a megabyte is hashed about once."""


def prove(state_path: str, plan: RoundPlan, peer: PeerId) -> Digest:
    """What only a holder of this round's anchor can say.

    Args:
        state_path: file with the anchor's canonical bytes.
        plan: the round: its number and the last manifest choose the blocks,
        peer: and so does whose proof it is, which is then no use to another.

    Raises:
        StateError: the file cannot be read.
    """
    salt = f"{plan.run}/{plan.round}/{plan.previous}/{peer}".encode()
    try:
        with Path(state_path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as anchor:
            return _hash(anchor, salt)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise StateError(f"{state_path}: the anchor cannot be read: {error}") from error


def _hash(anchor: mmap.mmap, salt: bytes) -> Digest:
    blocks = -(-len(anchor) // BLOCK_BYTES)
    total = hashlib.sha256(salt)
    for number in struct.unpack(f"<{BLOCKS}Q", hashlib.shake_256(salt).digest(8 * BLOCKS)):
        start = number % blocks * BLOCK_BYTES
        total.update(anchor[start : start + BLOCK_BYTES])
    return Digest(total.hexdigest())
