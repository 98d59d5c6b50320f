"""What lies where, in bytes: on a GPU, in the machine's memory, on its disk. Item by item; they add up."""

from dataclasses import dataclass
from typing import NamedTuple

from elastic.plan.describe import PeerGroup, Plan
from elastic.plan.shape import Sizes, block_params

LOGITS_AT_ONCE = 2**25
"""Elements of the logits that exist at once; as in `model_zoo.llama`."""
CUDA_BYTES = 1.5e9
"""Context, kernels and NCCL's buffers of a process. Assumed."""
FRAGMENTS = 0.05
"""Of a GPU's items, lost between the allocator's blocks. Assumed."""
PEER_BYTES, WORKER_BYTES = 2e9, 0.6e9
"""Processes of a peer with one worker, and of each further one: 1.9 GiB and 555 MiB were measured."""


class Item(NamedTuple):
    """Something that takes room."""

    name: str
    size_bytes: float
    how: str
    """The formula, for people. P: parameters, of which a GPU holds P/S."""


@dataclass(frozen=True, slots=True)
class Room:
    """Items, and what there is for them."""

    place: str
    items: tuple[Item, ...]
    size_bytes: float

    @property
    def used(self) -> float:
        """All items together."""
        return sum(item.size_bytes for item in self.items)

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.used <= self.size_bytes


@dataclass(frozen=True, slots=True)
class Load:
    """What a peer works with."""

    sizes: Sizes
    sequence_length: int
    batch_size: int
    """Sequences of an inner step, which the peer's workers share."""
    payload_bytes: float
    payloads: float
    """That a round brings, its own among them."""
    nesterov: bool
    muon: bool
    rounds: int


def gpu_room(load: Load, plan: Plan, group: PeerGroup) -> Room:
    """One GPU of a peer, at the worst moment of an inner step: the backward pass of the last layer.

    Sources: ZeRO, arXiv 1910.02054, section 3, for the states, all of which are fp32.
    Activations as in Korthikanti et al., arXiv 2205.05198, section 4, for our blocks: see `activation_bytes`.
    """
    sizes, shards, train = load.sizes, group.gpus, plan.train
    params, computed = float(sizes.num_params()), 2 if train.precision == "bf16" else 4
    mine = -(-load.batch_size // shards)
    tokens = min(mine, train.micro_batch or mine) * load.sequence_length
    layer = activation_bytes(sizes, computed) * tokens
    inputs = sizes.dim * tokens * computed
    items = [
        Item("parameters", 4 * params / shards, "fp32, 4 P/S"),
        Item("gradients", 4 * params / shards, "fp32, 4 P/S"),
        *_moments(load, params, shards),
    ]
    if shards > 1:
        outside = params - sizes.layers * block_params(sizes)
        whole = computed * (2 * outside + 3 * block_params(sizes))
        items.append(Item("gathered", whole, "embeddings and two blocks whole, their gradients and one block's"))
        if computed == 2:
            items.append(Item("fp32 gradients", 4 * outside, "of the embeddings, to be added up"))
    elif computed == 2:
        items.append(Item("bf16 copies", 2 * params, "2 P, from one step to the next"))
    if train.recompute:
        kept, how = sizes.layers * inputs + layer, "inputs of all layers, and one layer whole"
    else:
        kept, how = sizes.layers * layer, "all layers: nothing is computed again"
    items.append(Item("activations", kept, how))
    items.append(_logits(sizes, tokens, computed))
    if group.gpu == "cpu":
        return Room("thread", tuple(items), group.memory_gb * 1e9 / group.gpus)
    items.append(Item("CUDA and NCCL", CUDA_BYTES, "assumed"))
    lost = FRAGMENTS * sum(item.size_bytes for item in items)
    items.append(Item("fragments", lost, f"{FRAGMENTS:.0%}, assumed"))
    return Room("GPU", tuple(items), group.device.memory_bytes)


def _moments(load: Load, params: float, shards: int) -> list[Item]:
    """Of the optimizer; see `elastic.train.inner.make_optimizer`."""
    if not load.muon:
        return [Item("AdamW", 8 * params / shards, "two means, 8 P/S")]
    matrices = load.sizes.layers * (block_params(load.sizes) - 2 * load.sizes.dim)
    return [
        Item("Muon", 4 * matrices / shards, "a mean, of the layers' matrices"),
        Item("AdamW", 8 * (params - matrices) / shards, "two means, of the rest"),
    ]


def activation_bytes(sizes: Sizes, computed: int) -> float:
    """What a block keeps of a token for its backward pass; `computed` bytes a number.

    The two norms keep their input, 2 D; the products their own, which are the two scaled outputs, 2 D, attention's
    result, D, and the product of SiLU and up, F. Query, key and value, rotated, D + 2 K E; gate and up, 2 F. Attention
    keeps no T × T matrix (FlashAttention, arXiv 2205.14135). This is what autograd holds on a CPU, to 1 % (a test
    counts); `torch.compile` keeps less.
    """
    return float(computed * (6 * sizes.dim + 2 * sizes.kv_heads * sizes.head_dim + 3 * sizes.ffn_dim))


def _logits(sizes: Sizes, tokens: int, computed: int) -> Item:
    """Logits, and their log-softmax in fp32, which becomes their gradient."""
    elements = min(tokens * sizes.vocab_size, LOGITS_AT_ONCE)
    each = 4 + computed
    whole = tokens * sizes.vocab_size <= LOGITS_AT_ONCE
    return Item("logits", float(elements * each), f"{each} bytes each, {'all' if whole else 'in pieces of 2²⁵'}")


def host_room(load: Load, plan: Plan, group: PeerGroup) -> Room:
    """The machine of a peer's first worker, when a round's work is compressed and applied."""
    params = float(load.sizes.num_params())
    largest = load.sizes.vocab_size * load.sizes.dim
    block = max(2 * load.sizes.ffn_dim * load.sizes.dim, load.sizes.dim**2)
    items = [
        Item("anchor", 4 * params, "fp32, 4 P"),
        Item("residual", 4 * params, "fp32, 4 P"),
        Item("Δ", 4 * params, "fp32, 4 P"),
        Item(
            "payloads",
            group.gpus * load.payloads * load.payload_bytes,
            f"{load.payloads:.3g} of {load.payload_bytes / 1e9:.3g} GB, for each of {group.gpus} workers",
        ),
        Item("update", 4.0 * (largest + block), "fp32, one turn of tensors"),
        Item("processes", PEER_BYTES + (group.gpus - 1) * WORKER_BYTES, "Ray, Hivemind, workers"),
    ]
    if load.nesterov:
        items.insert(1, Item("outer momentum", 4 * params, "fp32, 4 P"))
    if group.gpu == "cpu":
        items.append(Item("training", gpu_room(load, plan, group).used * group.gpus, "all that a GPU would hold"))
    return Room("memory", tuple(items), group.memory_gb * 1e9)


def disk_room(load: Load, plan: Plan, group: PeerGroup) -> Room:
    """The state directory at the end of the run, while an anchor is written."""
    params, kept = float(load.sizes.num_params()), plan.checkpoints
    state = 4 * params * (2 if load.nesterov else 1)
    items = [
        Item("anchors", (kept.keep_last + 1) * state, f"keep_last = {kept.keep_last}, and the next one being written"),
        Item("residuals", 12 * params, "fp32: two that commits name, and the next one being written"),
        Item("payloads", load.payloads * load.payload_bytes, "of one round; more are kept as there is room"),
    ]
    if kept.keep_every and (for_good := load.rounds // kept.keep_every):
        items.append(
            Item("anchors for good", for_good * state, f"keep_every = {kept.keep_every}, when the run is over")
        )
    return Room("disk", tuple(items), group.disk_gb * 1e9)
