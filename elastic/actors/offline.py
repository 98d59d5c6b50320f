"""What needs no network: a commented run file, and a look at the text."""

from pathlib import Path

from pydantic import ValidationError

from elastic.actors.job import load_corpus
from elastic.config import RunConfig, Shared
from elastic.config_data import SourceConfig
from elastic.data.dealing import check_enough
from elastic.data.opening import OpenedSource, is_remote, place_for, where_is
from elastic.errors import ConfigError, MissingCorpusError
from elastic.explain import explain
from elastic.messages import PeerId, digest_of
from elastic.registry import READ_CORPUS, load
from elastic.wire.signing import Identity

RUN_FILE = """\
# A run file. [shared] is the run: equal on every peer, hashed, and the hash tells runs apart. [local] is this machine.
# `elastic check` validates it; unknown keys are errors. What is marked (yours) is this run's or this machine's own;
# every other value shown is the default.

[shared]
run = "{name}"                      # (yours) name of the run
seed = 0                            # of the first anchor, and of who gets which tokens
rounds = 1000

[shared.model]
name = "llama"                      # or "your_package.module:Class"
preset = "nano"                     # nano (about 1M parameters), micro, 150m, 1b, 8b, 72b

[shared.data]
corpus = "pride_and_prejudice"      # ships with the project; a text of your own: any name here, local.corpus its path
sha256 = "{sha256}"  # (yours) of the text
tokenizer = "bytes"                 # or "bpe" with vocab_size, also in [shared.model]

[shared.inner]                      # on each peer's own tokens
steps = 30                          # inner steps per round (H)
batch_size = 8                      # sequences per step
sequence_length = 128
learning_rate = 3e-3
# optimizer = "adamw"               # or "muon" for the matrices of the layers

[shared.reducer]
name = "sparseloco"                 # or "average": dense all-reduce, for swarms that trust each other
# k = 64                            # values kept per chunk of 4096
# beta = 0.95                       # decay of the residual

[shared.outer]
learning_rate = 1.0                 # with "average": 0.7 and nesterov = 0.9 are usual
nesterov = 0.0

[shared.round]
train_seconds = 1200.0              # a slow peer stops here and contributes what it has
gather_seconds = 60.0               # the most that anyone is waited for
min_peers = 1                       # the run starts when so many are there

[shared.agreement]
validators = ["{peer}"]  # (yours) who decides what counts: this machine.
# Better several, so that any one may be down: add what `elastic id` prints on other machines. A quorum of them decides.

[shared.incentive]                  # who may contribute, and whose work counts how much; `elastic amend` changes it
name = "uniform"                    # by tokens; or "reputation", "subnet", "your_package.module:Class"
# "reputation": who helps counts more, and who does harm is shut out (docs/scoring.md). Its settings, for instance:
# entry = "open"                    # who gets in; "listed": members only; "invited": whom they answer for, too;
#                                     "work": anyone, for almost nothing until its work has helped for some rounds
# members = []                      # peer ids that are in from the beginning, as `elastic id` prints them
# "subnet": the same, among hotkeys of a Bittensor subnet, and weights on its chain (docs/subnet.md). It needs
# netuid = 3                        # the subnet's number, and has entry and members in [shared.incentive.reputation]

[shared.scoring]                    # validators try each contribution on some tokens, to know who helps
sequences = 8                       # of tokens, for each; 0: nobody is assessed

[local]
name = ""                           # a name for people
state_dir = "{state_dir}"           # (yours) key, anchor, residual, manifests, log, traces

# incentives = []                   # "their_package.module:Class": others' code that this peer may be asked to run

[local.checkpoints]                 # docs/checkpoints.md
keep_last = 4                       # of the newest anchors, for joiners and for looking back
keep_every = 0                      # keep the anchor of every N-th round for good, too; 0: none

[local.network]
bootstrap = []                      # addresses that `elastic bootstrap` printed
host = "0.0.0.0"                    # "127.0.0.1" keeps a trial on this machine
port = 0                            # TCP; fix it if you forward a port
# upload_mbps = 50                  # the most that payloads may take of the uplink; 0: no limit

[local.data]                        # where prepared tokens lie, if the run has [[shared.data.sources]] (docs/data.md)
# sources = {{ web = "/data/web" }}   # name = a folder, "https://host/folder" or "s3://bucket/folder"
# cache_gb = 20.0                   # for what is fetched from elsewhere

[local.exchange]
name = "hivemind"                   # or "bucket": payloads through a bucket of yours too, see docs/exchange.md

[local.ray]
address = "auto"                    # the cluster that `ray start --head` made here, or "host:port"
workers = 1                         # Ray Train workers that share the inner steps
gpu = false                         # true: one GPU per worker

[local.train]                       # what is learned is the same, to rounding; docs/training.md
precision = "fp32"                  # "bf16": products in bfloat16, for GPUs
# micro_batch = 0                   # sequences that a worker computes at once; fewer need less memory; 0: all it has
# recompute = false                 # true: less memory for a third more work
# compile = false                   # true: faster after a minute's start, most of all on GPUs

[local.trace]
exporter = "file"                   # "file": traces.jsonl in state_dir; "otlp": to endpoint (Jaeger); "off"
# endpoint = "http://127.0.0.1:4318/v1/traces"
# sample = 1.0                      # the part of all rounds that is traced, the same ones on every peer

[local.metrics]                     # off, unless one of these is set; what they are: docs/metrics.md
# prometheus = "127.0.0.1:9464"     # where Prometheus may ask; port 0: any free one
# otlp = "http://127.0.0.1:4318/v1/metrics"

[local.evaluator]                   # off, unless `every` is set; see docs/evaluation.md
# every = 10                        # watch only: measure the model of every tenth round, contribute and decide nothing
"""


def write_run_file(path: Path, name: str) -> PeerId:
    """Write a commented run file and the key of this machine's peer, its validator.

    Raises:
        ConfigError: there is a file already, or the name cannot be one.
    """
    if path.exists():
        raise ConfigError(f"{path} exists: choose another name, or remove it first")
    _check_name(name)
    sha256, state_dir = corpus_digest(), Path("runs") / name
    peer = Identity.load_or_create(path.resolve().parent / state_dir / "peer.key").peer
    text = RUN_FILE.format(name=name, peer=peer, state_dir=state_dir, sha256=sha256)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return peer


def _check_name(name: str) -> None:
    placeholder = PeerId("1" * 46)
    try:
        Shared.model_validate({"run": name, "agreement": {"validators": [placeholder]}})
    except ValidationError as error:
        raise ConfigError(
            f"--name {name}: {explain(error, Shared)}; write letters, digits, and . _ - between them, 64 at most"
        ) from error


def corpus_digest() -> str:
    """SHA-256 of the text that ships with the project."""
    return digest_of(load(READ_CORPUS)("pride_and_prejudice"))


def check_corpus(config: RunConfig) -> str:
    """A line about the text of a run, or one about each source of it; nothing is asked of a network.

    Raises:
        ConfigError: it is missing, is another one, or is too short for the run's rounds.
    """
    remote = [each for each in config.shared.data.sources if is_remote(where_is(config, each))]
    for each in remote:
        place_for(where_is(config, each), config)
    if remote:
        return "\n".join(f"source   {each.name} at {where_is(config, each)}: not looked at, it needs a network"
                         if each in remote else checked_source(config, each)
                         for each in config.shared.data.sources)  # fmt: skip
    corpus = load_corpus(config)
    try:
        note = check_enough(config, corpus)
    except ConfigError:
        raise
    except ValueError as error:
        raise MissingCorpusError(f"{error}: take a longer text, or lower shared.inner.sequence_length") from error
    if config.shared.data.sources:
        found = [checked_source(config, each) for each in config.shared.data.sources]
        return "\n".join([*found, f"note     {note}"] if note else found)
    text = corpus.sources[0]
    return f"text     {config.shared.data.corpus}, {len(text.tokens):,} tokens, sha256 {text.sha256[:12]}…"


def checked_source(config: RunConfig, source: SourceConfig) -> str:
    """One line about a source that lies here: all its shards are there, in the sizes that its index says.

    Raises:
        MissingCorpusError: one is not.
    """
    folder = Path(where_is(config, source))
    index = OpenedSource(config, source).index
    for shard in index.shards:
        path, size = folder / shard.name, index.size_of(shard)
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "is not there" if found is None else f"has {found:,} bytes, and not {size:,}"
            raise MissingCorpusError(
                f"source {source.name}: {path} {what}; `elastic data verify {folder}` looks at all"
            )
    return (
        f"source   {source.name}, weight {source.weight:g}, {index.tokens:,} tokens in {len(index.shards)} shards, "
        f"index {source.index[:12]}…"
    )
