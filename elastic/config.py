"""The run file: one frozen tree in two halves, read from TOML.

`[shared]` is the run itself. It is hashed, the digest is in every peer's card, and a peer with another digest is in
another run. `[local]` is this machine. No environment variable overrides a value.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from elastic.errors import ConfigError
from elastic.explain import explain
from elastic.messages import MAX_VALIDATORS, Digest, HexDigest, PeerIdField, RunName, Terms, digest_of

S = TypeVar("S", bound=BaseModel)

Positive = Annotated[int, Field(ge=1, le=2**40)]
PositiveSeconds = Annotated[float, Field(gt=0)]
TomlPath = Annotated[Path, Field(strict=False)]
"""Written as a string."""
Strings = Annotated[tuple[str, ...], Field(strict=False)]
"""Written as a list of them."""


class Section(BaseModel):
    """A table of the run file: frozen, no unknown keys, and no value of another type than the key's."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class PluginChoice(BaseModel):
    """A name from the registry, or "package.module:Class", and that class's own settings beside it."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    name: str
    """Which implementation."""

    @property
    def settings(self) -> dict[str, Any]:
        """What belongs to the chosen class's own `Config`."""
        return dict(self.__pydantic_extra__ or {})

    def canonical(self) -> str:
        """The one form in which peers name it to each other."""
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS).decode()

    @classmethod
    def from_canonical(cls, text: str) -> "PluginChoice":
        """Back from that form.

        Raises:
            ConfigError: it is none.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(f"{text[:200]!r} names no implementation: {explain(error, cls)}") from error

    @model_validator(mode="after")
    def _can_be_hashed(self) -> "PluginChoice":
        try:
            orjson.dumps(self.settings)
        except TypeError as error:
            raise ValueError(f"a setting cannot be part of the run's digest: {error}") from error
        return self


class DataConfig(Section):
    """[shared.data]: which text, cut how."""

    corpus: str = "pride_and_prejudice"
    """Name of a text that ships with the project; a text of your own gets any name and `local.corpus` its path."""
    sha256: HexDigest | None = None
    """Digest of the text's bytes, so that everyone trains on the same; `elastic init` fills it in."""
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    """"bytes": one token a byte. "bpe": byte-pair encoding trained on the text in-process, the same on every peer."""
    vocab_size: Annotated[int, Field(ge=256, le=2**20)] = 256
    """Size of the vocabulary; 256 for "bytes"."""
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Fraction at the end of the text that no contributor is ever assigned."""

    @model_validator(mode="after")
    def _bytes_have_256(self) -> "DataConfig":
        if self.tokenizer == "bytes" and self.vocab_size != 256:
            raise ValueError(
                'the "bytes" tokenizer has vocab_size = 256; remove vocab_size or choose tokenizer = "bpe"'
            )
        return self


class InnerConfig(Section):
    """[shared.inner]: the inner optimizer, AdamW. Defaults: SparseLoCo, arXiv 2508.15706."""

    steps: Positive = 30
    """H, inner steps per round; a slower peer may do fewer."""
    batch_size: Positive = 8
    """Sequences per inner step and peer, whatever the number of workers."""
    sequence_length: Annotated[int, Field(ge=8, le=2**24)] = 128
    """Tokens per sequence."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """Peak learning rate of AdamW."""
    warmup_steps: Annotated[int, Field(ge=0, le=2**40)] = 20
    """Inner steps, counted over the run, to reach the peak."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate after the last round, as a fraction of the peak (cosine)."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the mean of the gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's decay of the mean of their squares."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Part of a parameter that decays per step, times the learning rate."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this L2 norm."""


class OuterConfig(Section):
    """[shared.outer]: the outer step, θ ← θ − α · update."""

    learning_rate: Annotated[float, Field(gt=0)] = 1.0
    """α: how far the anchor follows the round's update."""
    nesterov: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Nesterov momentum; 0 (plain SGD) for sparseloco, whose residual plays that part; 0.9 is usual for average."""


class RoundConfig(Section):
    """[shared.round]: how long a round may take. Rounds end when everyone has arrived, these are the bounds."""

    train_seconds: Annotated[float, Field(gt=0, le=1500)] = 1200.0
    """A peer stops its inner steps after this long and contributes what it has. Records last half an hour."""
    gather_seconds: Annotated[float, Field(gt=0, le=240)] = 60.0
    """How long the first to be ready waits for the others, at most."""
    deadline_factor: Annotated[float, Field(ge=1)] = 2.0
    """A straggler is waited for until this many times what the faster half of the roster usually needs, plus two \
seconds, within the bounds above."""
    reveal: bool = False
    """Strict commit, then reveal: a peer serves its payload when everyone on the roster has committed, or half of the \
deadline has gone, so that nobody can commit to a copy in time. No byte travels before the slowest has committed."""
    min_peers: Positive = 1
    """The run starts when this many peers are there that may contribute."""
    max_peers: Annotated[int, Field(ge=1, le=48)] = 48
    """At most this many contribute in a round; a manifest of more would not fit into a DHT record (16 KiB)."""


class AgreementConfig(Section):
    """[shared.agreement]: who decides what counts."""

    validators: Annotated[tuple[PeerIdField, ...], Field(strict=False, min_length=1, max_length=MAX_VALIDATORS)]
    """Peer ids of the validators: a quorum of them decides each round. Of n, (n - 1) / 3 may lie and, with 3 or more, \
some may be down: 1 of 3, 1 of 4, 2 of 7. `elastic init` puts this machine's there."""

    seats: Annotated[int, Field(ge=0, le=MAX_VALIDATORS)] = 0
    """The incentive fills seats until so many decide, one a round, and replaces a validator that is shut out, or away \
for `absent_rounds`. 0: the validators named here decide to the end, or until they agree on others."""
    absent_rounds: Annotated[int, Field(ge=2, le=128)] = 16
    """A validator that proposed no manifest in so many rounds, and contributed nothing that counted, is gone; who \
shall become one was there in three quarters of them."""

    @model_validator(mode="after")
    def _each_once(self) -> "AgreementConfig":
        if len(set(self.validators)) < len(self.validators):
            raise ValueError("validators names a peer twice")
        return self


class ScoringConfig(Section):
    """[shared.scoring]: how validators find out who helps. Others do the cheap checks only."""

    sequences: Annotated[int, Field(ge=0, le=1024)] = 8
    """Sequences on which the loss is measured before and after one contribution, twice: its own and others'. \
0: nobody measures."""
    step: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Part of the outer step on which a single contribution is tried: whole ones are noisy."""
    budget: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Part of a round's time that a validator may spend on it after the round is decided, for what it had no time \
to measure while it waited for others."""


class Shared(Section):
    """[shared]: everything that must be equal on every peer."""

    run: RunName
    """Name of the run."""
    seed: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Seed of the first anchor and of who gets which tokens."""
    rounds: Positive = 1000
    """The run ends after this many rounds."""
    model: PluginChoice = PluginChoice(name="llama", preset="nano")  # type: ignore[call-arg]
    """What is trained."""
    reducer: PluginChoice = PluginChoice(name="sparseloco")
    """What makes a round's update small."""
    incentive: PluginChoice = PluginChoice(name="uniform")
    """Who may contribute, and whose work counts how much."""
    data: DataConfig = DataConfig()
    """The text."""
    inner: InnerConfig = InnerConfig()
    """The inner optimizer."""
    outer: OuterConfig = OuterConfig()
    """The outer step."""
    round: RoundConfig = RoundConfig()
    """Bounds of a round."""
    scoring: ScoringConfig = ScoringConfig()
    """How validators find out who helps."""
    agreement: AgreementConfig
    """Who decides what counts."""

    def terms(self) -> Terms:
        """Those that the run begins with."""
        return Terms(validators=tuple(sorted(self.agreement.validators)), incentive=self.incentive.canonical())

    def digest(self) -> Digest:
        """SHA-256 over the canonical JSON of all values, defaults included (a plug-in's settings: as written)."""
        return digest_of(orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS))


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
    exchange: PluginChoice = PluginChoice(name="hivemind")
    """How records and bytes travel between peers."""
    incentive: dict[str, Any] = {}
    """What the run's incentive needs to know of this machine, such as a wallet; most need nothing."""
    incentives: Strings = ()
    """Incentives of others, "package.module:Class", that this peer takes up if the run agrees on them while it goes \
on; those that come with the project it always does."""
    ray: RayConfig = RayConfig()
    """The Ray cluster."""
    network: NetworkConfig = NetworkConfig()
    """The place in the DHT."""
    trace: TraceConfig = TraceConfig()
    """Where spans go."""
    metrics: MetricsConfig = MetricsConfig()
    """Where numbers go."""
    report: TomlPath | None = None
    """Append one JSON object per round to this file, too; `rounds.jsonl` in the state directory has the newest."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """How much goes to `peer.log` in the state directory."""


class RunConfig(Section):
    """The whole run file."""

    shared: Shared
    """The run: equal on every peer."""
    local: Local = Local()
    """This machine."""
    plan: dict[str, Any] = {}
    """[plan]: who is thought to take part, for `elastic plan`, which checks it; no peer reads it."""

    @property
    def key_path(self) -> Path:
        """Where the peer's private key lies."""
        return self.local.key or self.local.state_dir / "peer.key"


def load_config(path: Path) -> RunConfig:
    """Read and validate a run file; relative paths in `[local]` start at its folder.

    Raises:
        ConfigError: unreadable, not TOML, or wrong values; one line, with the nearest key if one is misspelt.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such run file; `elastic init {path}` writes one") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return parse_config(tree, base=path.resolve().parent, source=str(path))


def parse_config(tree: dict[str, Any], *, base: Path, source: str = "run file") -> RunConfig:
    """Validate a parsed run file.

    Raises:
        ConfigError: see `load_config`.
    """
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error, RunConfig)}") from error
    try:
        local = _resolved(config.local, base, ("state_dir", "key", "corpus", "report"))
        resolved = {name: _resolved(getattr(local, name), base, ("authorization",)) for name in ("trace", "metrics")}
    except RuntimeError as error:
        raise ConfigError(f"{source}: a path in [local] begins with ~ of a user that is not here: {error}") from error
    return config.model_copy(update={"local": local.model_copy(update=resolved)})


def _resolved(section: S, base: Path, fields: tuple[str, ...]) -> S:
    paths = {field: getattr(section, field) for field in fields}
    found = {field: base / path.expanduser() for field, path in paths.items() if path is not None}
    return section.model_copy(update=found)
