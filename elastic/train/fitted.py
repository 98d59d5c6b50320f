"""A model fitted to the workers of a peer and to their machine: sharded, in bf16, recomputed, compiled, as configured.

Several workers, or bf16, are FSDP2: parameters, gradients and moments are sharded, layers are gathered when they are
needed. Source: PyTorch FSDP, arXiv 2304.11277; torch.distributed.fsdp.fully_shard.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from elastic.errors import ConfigError
from elastic.train.workers import Worker


class Fitted:
    """One model. Its params are found by the names that they have in the model; they are not set yet."""

    def __init__(self, model: Any, worker: Worker) -> None:
        """Take a model whose layers, if it says which they are, are its `blocks`; its values, if any, are lost."""
        self.model, self._worker = model, worker
        for block in getattr(model, "blocks", ()):
            _prepare(block, worker)
        self._whole = _Whole(model)
        names = dict(model.named_parameters(remove_duplicate=False))
        if worker.world_size > 1 or worker.how.precision == "bf16":
            if len(names) > len(dict(model.named_parameters())):
                raise ConfigError(f"{type(model).__name__} has one parameter under two names: such models are trained "
                                  "in fp32 by one worker only")  # fmt: skip
            _shard(self._whole, worker)
        self._whole.to_empty(device=worker.device)
        _tie_again(model, names)
        self.params: dict[str, nn.Parameter] = dict(model.named_parameters())

    def loss(self, tokens_BT: Tensor) -> Tensor:
        """Scalar mean loss in nats, ready for `backward`; all workers call it equally often, each with its tokens."""
        loss: Tensor = self._whole("loss", tokens_BT)
        return loss

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def look(self, verb: str, *args: Any, **settings: Any) -> Tensor:
        """What another method of the model says, without gradients; all workers call it together."""
        try:
            found: Tensor = self._whole(verb, *args, **settings)
        finally:
            self._forget()
        return found

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def fill(self, value_of: Callable[[str], Tensor], owners: dict[str, int]) -> None:
        """Set all params; `value_of` is asked for those that this worker owns."""
        self._forget()
        for name, param in self.params.items():
            mine = value_of(name) if owners[name] == self._worker.rank else None
            value = self._worker.broadcast(mine, param.shape, owners[name])
            param.copy_(_like(param, value))

    def owned(self, owners: dict[str, int]) -> Iterator[tuple[str, Tensor]]:
        """The params that this worker owns, each whole, one at a time; all workers go through it together."""
        for name, param in self.params.items():
            whole = param.detach()
            if isinstance(whole, DTensor):
                whole = whole.full_tensor()
            if owners[name] == self._worker.rank:
                yield name, whole

    def kept(self) -> dict[str, Tensor]:
        """A copy of this worker's part of all params."""
        return {name: param.detach().clone() for name, param in self.params.items()}

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def put_back(self, kept: dict[str, Tensor]) -> None:
        """Make the params what they were."""
        self._forget()
        for name, param in self.params.items():
            param.copy_(kept[name])

    def _forget(self) -> None:
        """After a forward pass without a backward pass FSDP would go on with what it had gathered for it."""
        for module in self._whole.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


class _Whole(nn.Module):  # type: ignore[misc]
    """Any method of a model as a forward pass, for which FSDP gathers the params."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, verb: str, *args: Any, **settings: Any) -> Any:
        return getattr(self.model, verb)(*args, **settings)


def _prepare(block: Any, worker: Worker) -> None:
    """Compile a layer, and have it computed again in the backward pass, as configured; its name stays."""
    if worker.how.compile:
        block.forward = torch.compile(block.forward)
    if worker.how.recompute:
        forward = block.forward

        def again(*args: Any) -> Any:
            return checkpoint(forward, *args, use_reentrant=False) if torch.is_grad_enabled() else forward(*args)

        block.forward = again


def _shard(whole: nn.Module, worker: Worker) -> None:
    kind = torch.device(worker.device).type
    if not dist.is_initialized():  # alone, without Ray Train: nobody to talk to
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = DeviceMesh(kind, range(worker.world_size))
    # inputs stay as they are: what is fp32 among them, angles for instance, is meant to be
    half = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = half if worker.how.precision == "bf16" else MixedPrecisionPolicy()
    several = worker.world_size > 1
    for block in getattr(whole.model, "blocks", ()):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=several)
    fully_shard(whole, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def _tie_again(model: nn.Module, names: dict[str, nn.Parameter]) -> None:
    """What was one parameter under several names before it got memory is so again."""
    firsts: dict[int, nn.Parameter] = {}
    for name, before in names.items():
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, attribute, firsts.setdefault(id(before), getattr(module, attribute)))


def _like(param: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, sharded like the param if that is."""
    if not isinstance(param, DTensor):
        return value
    return distribute_tensor(value.to(param.dtype), param.device_mesh, param.placements, src_data_rank=None)
