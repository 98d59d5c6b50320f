"""`[plan]` of a run file: the peers that somebody imagines, and what is assumed of them.

It stands beside [shared] and [local] because it is neither: it is no part of the run's digest, and no peer reads it. So
one file holds a run and who is thought to take part, and a file without it has the assumptions below.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from elastic.config import RunConfig
from elastic.config_local import CheckpointsConfig, RayConfig, TrainConfig
from elastic.errors import ConfigError
from elastic.explain import explain
from elastic.plan.gpus import Gpu, gpu_named
from elastic.sections import Section

Amount = Annotated[float, Field(gt=0, le=1e15)]
Count = Annotated[int, Field(ge=1, le=10**6)]
Topology = Literal["swarm", "origin", "bucket"]
TOPOLOGIES: tuple[Topology, ...] = ("origin", "swarm", "bucket")

GPU_MFU, CPU_MFU = 0.4, 0.6
"""Part of the peak that goes into the model's own products, if nobody says: `elastic bench train` measures it. The
second is the nano model on one thread of the README's machine when the swarms that plans are held against were
measured, 11,000 tokens/s; today's decoder does 16,900 (docs/models.md)."""


class PeerGroup(Section):
    """[[plan.peers]]: some peers that are alike."""

    count: Count = 8
    """How many of them."""
    gpu: str = "H100"
    """"cpu" (one thread), RTX3090, RTX4090, L40S, A100-40, A100, H100, H200, B200, MI300X."""
    gpus: Annotated[int, Field(ge=1, le=4096)] = 8
    """GPUs of one peer, each a Ray Train worker; for "cpu": threads."""
    up_mbps: Amount = 110.0
    """What leaves at most, in 10⁶ bits a second. Defaults: a good home line, as Covenant-72B assumed."""
    down_mbps: Amount = 500.0
    """What comes in at most."""
    rtt_ms: Annotated[float, Field(ge=0, le=10_000)] = 40.0
    """To other peers and back."""
    cores: Annotated[int, Field(ge=1, le=4096)] = 64
    """CPU cores, which compress, decode and add up."""
    memory_gb: Amount = 1024.0
    """Of the machine, in 10⁹ bytes."""
    memory_gb_per_second: Amount = 200.0
    """How fast that is."""
    disk_gb: Amount = 4000.0
    """Room for the state directory."""
    disk_gb_per_second: Amount = 3.0
    """Written in sequence."""
    mfu: Annotated[float, Field(gt=0, le=1)] | None = None
    """Part of the GPUs' peak that goes into the model's own products; left out: 0.4, or 0.6 for "cpu"."""
    usd_per_hour: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Of the whole peer; left out: an example."""

    @field_validator("gpu")
    @classmethod
    def _is_known(cls, name: str) -> str:
        gpu_named(name)
        return name

    @property
    def device(self) -> Gpu:
        """One of its GPUs."""
        return gpu_named(self.gpu)

    @property
    def used(self) -> float:
        """The part of the peak that is used, said or assumed."""
        return self.mfu or (CPU_MFU if self.gpu == "cpu" else GPU_MFU)

    @property
    def price(self) -> float:
        """Dollars an hour, said or an example."""
        return self.gpus * self.device.usd_per_hour if self.usd_per_hour is None else self.usd_per_hour


class Plan(Section):
    """[plan]: what `elastic plan` computes with."""

    peers: Annotated[tuple[PeerGroup, ...], Field(strict=False, min_length=1, max_length=64)]
    """Who is thought to take part; contributors are drawn from all groups alike."""
    topology: Topology = "swarm"
    """How payloads travel. "origin": each from its maker to everyone; "swarm": everyone passes on; "bucket": each maker
    puts its own where others read it."""
    train: TrainConfig = TrainConfig()
    """How they compute the inner steps; left out: as [local.train] of this file says."""
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    """Which anchors stay on their disks; left out: as [local.checkpoints] of this file says."""
    overlap: bool = False
    """The next round's inner steps begin while a round's payloads travel. NOT BUILT YET: to see what it would give."""
    talk_seconds: Annotated[float, Field(ge=0, le=3600)] = 4.2
    """What commitments and agreement take, beside the bytes. Measured: a round of 5.2 s with 1 s of training, six
    peers, 40 ms apart (docs/churn.md); two busy cores are in it."""
    payload_bytes: Amount | None = None
    """Bytes of a payload; left out: what the run's reducer makes of this model."""
    restart_seconds: Amount = 5.0
    """From a peer's death until it works again, reading its state aside; three seconds of imports and some more."""
    spread: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Of the time that equal peers take for equal work, for the simulator: the standard deviation of its logarithm."""
    usd_per_gb: Annotated[float, Field(ge=0, le=1e3)] = 0.0
    """What a bucket's owner pays for each 10⁹ bytes that others read; none at some sellers, 0.09 at others."""


def described(config: RunConfig) -> Plan:
    """The plan of a run file; what it does not say is assumed.

    Raises:
        ConfigError: a wrong value, or an unknown key and the nearest one.
    """
    tree = dict(config.plan)
    if "peers" not in tree:
        tree["peers"] = [_own(config.local.ray)]
    if "topology" not in tree and config.local.exchange.name == "bucket":
        tree["topology"] = "bucket"
    tree.setdefault("train", config.local.train.model_dump())
    tree.setdefault("checkpoints", config.local.checkpoints.model_dump())
    try:
        return Plan.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"[plan] {explain(error, Plan)}") from error


def _own(ray: RayConfig) -> dict[str, Any]:
    """Eight peers like the run file's: its workers on H100s, or as many threads of a laptop."""
    if ray.gpu:
        return {"gpu": "H100", "gpus": ray.workers}
    threads = ray.workers * max(1, ray.threads)
    room = {"memory_gb": 16.0, "disk_gb": 100.0, "disk_gb_per_second": 1.0, "memory_gb_per_second": 20.0}
    return {"gpu": "cpu", "gpus": threads, "cores": max(2, threads), **room}
