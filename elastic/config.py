"""The run file: one frozen tree in two halves, read from TOML.

`[shared]` is the run itself. It is hashed, the digest is in every peer's card, and a peer with another digest is in
another run. `[local]` is this machine (`config_local.py`). No environment variable overrides a value.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, Field, ValidationError, model_validator

from elastic.config_data import DataConfig
from elastic.config_local import Local
from elastic.errors import ConfigError
from elastic.explain import explain
from elastic.messages import MAX_VALIDATORS, Digest, PeerIdField, RunName, Terms, digest_of
from elastic.sections import PluginChoice, Positive, Section

S = TypeVar("S", bound=BaseModel)


class InnerConfig(Section):
    """[shared.inner]: the inner steps. Defaults: SparseLoCo, arXiv 2508.15706."""

    optimizer: Annotated[Literal["adamw", "muon"], Field(exclude_if=lambda name: name == "adamw")] = "adamw"
    """"muon": Muon for the matrices of the layers, AdamW for embeddings, output and gains."""

    steps: Positive = 30
    """H, inner steps per round; a slower peer may do fewer."""
    batch_size: Positive = 8
    """Sequences per inner step and peer, whatever the number of workers."""
    sequence_length: Annotated[int, Field(ge=8, le=2**24)] = 128
    """Tokens per sequence."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """Peak learning rate; Muon's steps are scaled to be as large as AdamW's."""
    warmup_steps: Annotated[int, Field(ge=0, le=2**40)] = 20
    """Inner steps, counted over the run, to reach the peak."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate after the last round, as a fraction of the peak (cosine)."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the mean of the gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's decay of the mean of their squares."""
    momentum: Annotated[float, Field(ge=0, lt=1, exclude_if=lambda momentum: momentum == 0.95)] = 0.95
    """Muon's decay of the mean of the gradients."""
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
        """SHA-256 over the canonical JSON of all values, defaults included (a plug-in's settings: as written).

        What came later than the first release counts only where it is used: runs keep their digests.
        """
        return digest_of(orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS))


class RunConfig(Section):
    """The whole run file."""

    shared: Shared
    """The run: equal on every peer."""
    local: Local = Local()
    """This machine."""
    plan: dict[str, Any] = {}  # noqa: RUF012 (pydantic copies it)
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
        data = _resolved(local.data, base, ("cache", "access_key_file", "secret_key_file"))
        resolved["data"] = data.model_copy(update={"sources": _placed(data.sources, base)})
    except RuntimeError as error:
        raise ConfigError(f"{source}: a path in [local] begins with ~ of a user that is not here: {error}") from error
    return config.model_copy(update={"local": local.model_copy(update=resolved)})


def _placed(sources: dict[str, str], base: Path) -> dict[str, str]:
    """URLs as they are, paths from the run file's folder."""
    return {name: where if "://" in where else str(base / Path(where).expanduser()) for name, where in sources.items()}


def _resolved(section: S, base: Path, fields: tuple[str, ...]) -> S:
    paths = {field: getattr(section, field) for field in fields}
    found = {field: base / path.expanduser() for field, path in paths.items() if path is not None}
    return section.model_copy(update=found)
