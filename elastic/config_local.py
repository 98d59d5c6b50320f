"""[local] of the run file: this machine. Its values are nobody else's business, and not part of the run's digest."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from elastic.sections import PluginChoice, Positive, PositiveSeconds, Section, Strings, TomlPath


class RayConfig(Section):
    """[local.ray]: the Ray cluster of this peer."""

    address: str = "auto"
    """Address of a running cluster ("127.0.0.1:6379"), or "auto": the one `ray start` made on this machine."""
    workers: Positive = 1
    """Ray Train workers that share the inner steps."""
    gpu: bool = False
    """One GPU per worker (NCCL); false: CPU (gloo)."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPUs that Ray sets aside for each worker."""
    threads: Annotated[int, Field(ge=0, le=4096)] = 0
    """Torch threads per worker; 0: the machine's cores divided by the workers."""


class TrainConfig(Section):
    """[local.train]: how this machine computes the inner steps. What is learned is the same, to rounding."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """"bf16": products and activations in bfloat16, for GPUs; parameters, gradients and moments stay fp32."""
    micro_batch: Annotated[int, Field(ge=0, le=2**40)] = 0
    """Sequences that a worker computes at once; 0: all of its part of a batch. Fewer need less memory."""
    recompute: bool = False
    """Keep no activations of a layer, compute them again in the backward pass: a third more work, far less memory."""
    compile: bool = False
    """torch.compile each layer: a minute at the start, faster from then on, most of all on GPUs."""


class NetworkConfig(Section):
    """[local.network]: this peer's place in the DHT."""

    bootstrap: Strings = ()
    """Addresses of entry points, "/ip4/…/tcp/…/p2p/12D3Koo…", as `elastic bootstrap` prints them."""
    host: str = "0.0.0.0"
    """Address to listen on; "127.0.0.1" keeps a trial on this machine."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """TCP port to listen on; 0: any free one. Fix it if you forward a port."""
    announce: Strings = ()
    """Addresses to tell others instead of the ones found, e.g. "/dns4/peer.example.org/tcp/4001"."""
    listen: bool = True
    """False: dial out only, for a peer that nobody can dial. It serves over connections that it dialled, and keeps \
no records for others."""
    map_port: bool = True
    """Ask the router to forward the port (UPnP, NAT-PMP); never on loopback."""
    relays: Strings = ()
    """Peers that pass small messages on to one nobody can dial, "/ip4/…/tcp/…/p2p/12D3Koo…". Payloads do not travel \
through relays, which cut them off."""
    hole_punching: bool = False
    """Let libp2p find out whether we can be dialled, and try to get through two routers at once; it needs `relays`."""
    bootstrap_seconds: PositiveSeconds = 60.0
    """Give up when no entry point answered for this long."""
    card_seconds: Annotated[float, Field(ge=1, le=600)] = 20.0
    """A peer that stopped renewing its card is gone after this long."""
    upload_mbps: Annotated[float, Field(ge=0)] = 0.0
    """Payloads and anchors leave at most so fast, in megabits per second, to all together; 0: no limit."""


class TraceConfig(Section):
    """[local.trace]: OpenTelemetry."""

    exporter: Literal["file", "otlp", "off"] = "file"
    """"file": OTLP-JSON lines in the state directory; "otlp": to `endpoint`; "off": costs nothing."""
    endpoint: str = "http://127.0.0.1:4318/v1/traces"
    """OTLP/HTTP endpoint, Jaeger's by default."""
    authorization: TomlPath | None = None
    """File with what that endpoint wants in the Authorization header, "Basic …" or "Bearer …"."""
    sample: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The part of all rounds that is traced. Which ones follows from their trace ids: peers with the same value trace \
the same rounds."""
    fine: bool = False
    """Also a span per inner step and per chunk, in a trace of this peer's own for each round; many."""


class MetricsConfig(Section):
    """[local.metrics]: numbers through OpenTelemetry; docs/metrics.md has them all. Off unless one of these is set."""

    prometheus: Annotated[str, Field(pattern=r"^(|(\[[0-9A-Fa-f:]+\]|[^\s:\[\]/]+):[0-9]{1,5})$")] = ""
    """Where Prometheus may ask, "127.0.0.1:9464"; port 0: any free one, which `elastic status` tells."""
    otlp: Annotated[str, Field(pattern=r"^(|https?://\S+)$")] = ""
    """OTLP/HTTP endpoint to send them to, "http://127.0.0.1:4318/v1/metrics"."""
    seconds: Annotated[float, Field(ge=1, le=3600)] = 15.0
    """Between two times that they are sent there."""
    authorization: TomlPath | None = None
    """File with what that endpoint wants in the Authorization header, "Basic …" or "Bearer …"."""

    @property
    def wanted(self) -> bool:
        """Whether they go anywhere."""
        return bool(self.prometheus or self.otlp)

    @model_validator(mode="after")
    def _has_a_port(self) -> "MetricsConfig":
        if self.prometheus and int(self.prometheus.rpartition(":")[2]) > 65535:
            raise ValueError(f'prometheus = "{self.prometheus}": a port is 65535 at most')
        return self


class CheckpointsConfig(Section):
    """[local.checkpoints]: which anchors stay on this peer's disk; docs/checkpoints.md."""

    keep_last: Annotated[int, Field(ge=2, le=1000)] = 4
    """So many of the newest: a joiner fetches one while rounds go on."""
    keep_every: Annotated[int, Field(ge=0, le=2**40)] = 0
    """Also the one that every N-th round starts from, for good, to evaluate or export it; 0: none."""


class EvaluatorConfig(Section):
    """[local.evaluator]: a peer that watches the run and measures its model. It neither contributes nor decides."""

    every: Annotated[int, Field(ge=0, le=2**40)] = 0
    """Rounds from one evaluation to the next; 0: this peer is no evaluator."""
    tasks: Annotated[tuple[Literal["bits_per_byte", "facts"], ...], Field(strict=False, min_length=1)] = (
        "bits_per_byte",
        "facts",
    )
    """What is measured; see `elastic eval`."""
    limit: Annotated[int, Field(ge=1, le=2**40)] | None = None
    """Only so many examples of each task; left out: all."""

    @property
    def wanted(self) -> bool:
        """Whether this peer is one."""
        return self.every > 0


class LocalData(Section):
    """[local.data]: where the sources of [[shared.data.sources]] lie."""

    sources: dict[str, Annotated[str, Field(min_length=1, max_length=2048)]] = {}  # noqa: RUF012 (pydantic copies it)
    """Name → a folder, "https://host/folder" or "s3://bucket/folder", as `elastic data prepare` left it."""
    cache: TomlPath | None = None
    """Folder for shards that were fetched; default: `data` in the state directory. Several peers of one machine may \
share one."""
    cache_gb: Annotated[float, Field(gt=0)] = 20.0
    """Of fetched shards those that were not used for longest go beyond this, in GB."""
    fetchers: Annotated[int, Field(ge=1, le=64)] = 4
    """Shards that are fetched at once, ahead of need."""
    endpoint: Annotated[str, Field(pattern=r"^(|https?://[^\s?#@]+)$")] = ""
    """Of an S3-compatible service, "https://…"; empty: Amazon's, in `region`."""
    region: str = "us-east-1"
    """Region of the bucket."""
    access_key_file: TomlPath | None = None
    """File with the access key id, and"""
    secret_key_file: TomlPath | None = None
    """with the secret key; without both the bucket is read as anyone may."""

    @model_validator(mode="after")
    def _has_both_keys(self) -> "LocalData":
        if (self.access_key_file is None) != (self.secret_key_file is None):
            raise ValueError("access_key_file and secret_key_file go together")
        return self


class Local(Section):
    """[local]: this machine."""

    name: Annotated[str, Field(max_length=64)] = ""
    """A name for people; the peer id is the identity."""
    state_dir: TomlPath = Path("runs/peer")
    """Where anchor, residual, manifests, payloads, log and traces lie. Relative paths: from the run file's folder."""
    key: TomlPath | None = None
    """The peer's private key; default: `peer.key` in the state directory, made at the first start."""
    corpus: TomlPath | None = None
    """Path of the text, if `shared.data.corpus` is not one that ships with the project."""
    data: LocalData = LocalData()
    """Where prepared tokens lie."""
    exchange: PluginChoice = PluginChoice(name="hivemind")
    """How records and bytes travel between peers."""
    incentive: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)
    """What the run's incentive needs to know of this machine, such as a wallet; most need nothing."""
    incentives: Strings = ()
    """Incentives of others, "package.module:Class", that this peer takes up if the run agrees on them while it goes \
on; those that come with the project it always does."""
    ray: RayConfig = RayConfig()
    """The Ray cluster."""
    train: TrainConfig = TrainConfig()
    """How the inner steps are computed."""
    network: NetworkConfig = NetworkConfig()
    """The place in the DHT."""
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    """What stays on the disk."""
    trace: TraceConfig = TraceConfig()
    """Where spans go."""
    metrics: MetricsConfig = MetricsConfig()
    """Where numbers go."""
    evaluator: EvaluatorConfig = EvaluatorConfig()
    """Whether this peer only watches, and measures."""
    report: TomlPath | None = None
    """Append one JSON object per round to this file, too; `rounds.jsonl` in the state directory has the newest."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """How much goes to `peer.log` in the state directory."""
