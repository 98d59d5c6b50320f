"""How long one peer is at work in a round, phase by phase, when nobody is waited for."""

from typing import NamedTuple

from elastic.plan.describe import PeerGroup, Plan
from elastic.plan.memory import Load
from elastic.plan.shape import flops_per_token

HASH_BYTES_PER_SECOND = 1e9
"""SHA-256 of a thread with the processor's own instructions; measured, docs/exchange.md."""

COMPRESS = 1.42e-9
"""Seconds a parameter for a sender on two cores, of which each reads and writes 12 bytes of memory."""
DECODE, DECODE_PAYLOAD = 0.04e-9, 0.0322e-9
"""Seconds a parameter for a receiver on two cores: once, and for each payload."""
ADD, ADD_PAYLOAD = 0.83e-9, 0.054e-9
"""The same for adding up. All fitted to docs/sparseloco.md, 122.7M parameters and 8, 16 and 70 payloads: within 8 %."""
MEASURED_CORES = 2
STATE_BYTES = 12
"""That compressing or adding up moves a parameter: what it reads, and what it writes."""


class Phase(NamedTuple):
    """Part of a round."""

    name: str
    seconds: float
    how: str
    """Where the time goes, for people."""


def train_seconds(load: Load, group: PeerGroup, tokens: float) -> float:
    """Inner steps on so many tokens: the model's own products, at the part of the peak that is used."""
    return tokens * flops_per_token(load.sizes, load.sequence_length) / flops_per_second(group)


def flops_per_second(group: PeerGroup) -> float:
    """Of the model's own products, on all GPUs of a peer."""
    return group.gpus * group.device.flops * group.used


def before(load: Load, plan: Plan, group: PeerGroup) -> list[Phase]:
    """Between the last inner step and the payload's being offered."""
    params = float(load.sizes.num_params())
    moved = 2 * 4 * params / (group.gpus * group.device.host_bandwidth)
    return [
        Phase("offload", moved, "parameters to the host, and the anchor back"),
        Phase("compress", _on_cores(COMPRESS * params, params, group), f"{group.cores} cores"),
        Phase("write residual", written(4 * params, group), "hash and disk, 4 P"),
    ]


def after(load: Load, group: PeerGroup, exchange_seconds: float) -> list[Phase]:
    """From the payloads' arrival until the next round can begin; they are decoded as they come, but for the last."""
    params = float(load.sizes.num_params())
    one = _on_cores(DECODE_PAYLOAD * params, 0, group)
    decode = max(one, _on_cores((DECODE + DECODE_PAYLOAD * load.payloads) * params, 0, group) - exchange_seconds)
    add = _on_cores((ADD + ADD_PAYLOAD * load.payloads) * params, params, group)
    state = 4 * params * (2 if load.nesterov else 1)
    return [
        Phase("decode", decode, "what is not done while others arrive"),
        Phase("outer step", add, f"{load.payloads:.3g} payloads, {group.cores} cores"),
        Phase("write anchor", written(state, group), "hash and disk, 4 P" + (" twice" if load.nesterov else "")),
    ]


def written(size: float, group: PeerGroup) -> float:
    """Seconds to hash so many bytes on all cores, and to put them on the disk, which may go on beside what follows."""
    hashing = size / min(HASH_BYTES_PER_SECOND * group.cores, group.memory_gb_per_second * 1e9)
    return hashing + size / (group.disk_gb_per_second * 1e9)


def _on_cores(seconds: float, params: float, group: PeerGroup) -> float:
    """What two cores need, on all of them; never faster than memory allows."""
    return max(seconds * MEASURED_CORES / group.cores, STATE_BYTES * params / (group.memory_gb_per_second * 1e9))
