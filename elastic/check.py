"""What `elastic check` and `elastic join` look at beyond single values: how the parts of a run file go together.

No network, no Ray, and nothing heavier than what the run file chooses. Every mistake is a ConfigError of one line
that says what to write instead.
"""

import difflib
import ipaddress
import os
import re
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from elastic.config import RunConfig, Shared
from elastic.errors import ConfigError, MissingExtraError, SignatureInvalidError
from elastic.explain import NO_PEER_ID
from elastic.messages import PeerId
from elastic.registry import load, local_settings, resolve, target_of
from elastic.wire.signing import Identity, public_key_of

ENTRY_PROTOCOLS = ("ip4", "dns4", "dns")
"""How an entry point may be named; libp2p's daemon listens on IPv4."""
ANNOUNCED_PROTOCOLS = (*ENTRY_PROTOCOLS, "ip6", "dns6")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
ENTRY_FORM = "/ip4/203.0.113.5/tcp/4001/p2p/12D3Koo…"
ANNOUNCED_FORM = "/dns4/peer.example.org/tcp/4001"


def check_evaluator(config: RunConfig, peer: PeerId) -> None:
    """Whether a peer of that id may be what the run file says.

    Raises:
        ConfigError: it decides the run, and shall be an evaluator.
    """
    if config.local.evaluator.wanted and peer in config.shared.agreement.validators:
        raise ConfigError(
            f"local.evaluator: an evaluator decides nothing, and this machine's key ({config.key_path}) is that of a "
            "validator: give the evaluator a state_dir of its own"
        )


def check_values(config: RunConfig) -> None:
    """Everything that needs nothing but the run file itself.

    Raises:
        ConfigError: the first mistake.
    """
    shared, local = config.shared, config.local
    for number, peer in enumerate(shared.agreement.validators, start=1):
        check_peer(peer, f"shared.agreement.validators, entry {number}")
    for address in local.network.bootstrap:
        check_entry(address)
    for address in local.network.announce:
        _check_transport(
            address.split("/"), ANNOUNCED_PROTOCOLS, f'local.network.announce: "{address}"', ANNOUNCED_FORM
        )
    for address in local.network.relays:
        check_entry(address, "local.network.relays")
    if local.network.hole_punching and not local.network.relays:
        raise ConfigError("local.network.hole_punching needs local.network.relays: two peers meet there first")
    _check_host(local.network.host)
    if shared.inner.batch_size < local.ray.workers:
        raise ConfigError(
            f"local.ray.workers = {local.ray.workers}, but there are only shared.inner.batch_size = "
            f"{shared.inner.batch_size} sequences in a batch for them to share; choose fewer workers"
        )
    if shared.round.min_peers > shared.round.max_peers:
        raise ConfigError(
            f"shared.round.min_peers = {shared.round.min_peers} is more than max_peers = {shared.round.max_peers}; "
            "raise max_peers"
        )
    _check_paths(config)
    if local.evaluator.wanted and config.key_path.is_file():
        check_evaluator(config, Identity.load(config.key_path).peer)


def check_plugins(config: RunConfig) -> None:
    """Every plug-in can be imported, takes its settings, and fits the rest of the run file.

    Raises:
        ConfigError: see `elastic.registry.resolve`, or two parts that do not fit.
    """
    shared = config.shared
    exchange, _ = resolve("exchange", config.local.exchange)
    if not hasattr(exchange, "start"):
        raise ConfigError(
            f'local.exchange.name = "{config.local.exchange.name}" works inside one process only; write "hivemind"'
        )
    _, incentive = resolve("incentive", shared.incentive)
    check_newcomers(incentive, shared)
    if config.local.incentive:
        local_settings(config, shared.incentive)
    for name in config.local.incentives:
        try:
            load(target_of("incentive", name))
        except ConfigError as error:
            raise type(error)(f"local.incentives: {error}") from error
    if config.local.evaluator.wanted and find_spec("lm_eval") is None:
        raise MissingExtraError("local.evaluator needs lm-eval: pip install 'elastic[eval]', or leave that section out")
    resolve("reducer", shared.reducer)
    _, model = resolve("model", shared.model)
    _check_model(config, getattr(model, "shape", model))


def admission(settings: Any) -> Any:
    """Of an incentive's settings those that say who gets in: its own, or those of the reputation that it builds on."""
    return getattr(settings, "reputation", settings)


def check_newcomers(settings: Any, shared: Shared, where: str = "shared.incentive.") -> None:
    """Who shall get in can: members are peer ids, and what is told beside the rounds is told at all.

    Args:
        settings: of an incentive.
        shared: the rest of the run file.
        where: what stands before their keys in messages.

    Raises:
        ConfigError: see above.
    """
    holder = admission(settings)
    table = where if holder is settings else f"{where}reputation."
    for number, peer in enumerate(getattr(holder, "members", ()), start=1):
        check_peer(PeerId(peer), f"{table}members, entry {number}")
    for number, peer in enumerate(getattr(holder, "carried", ()), start=1):
        check_peer(PeerId(peer), f"{table}carried, entry {number}")
    entry = getattr(holder, "entry", "open")
    if entry in ("invited", "work") and not shared.scoring.sequences:
        raise ConfigError(
            f'{table}entry = "{entry}" needs validators that assess: shared.scoring.sequences is 0, so that '
            "nobody would ever be let in"
        )


def _notes_on_entry(shared: Shared) -> Iterator[str]:
    """What is allowed and lets in others than one might think."""
    holder = admission(resolve("incentive", shared.incentive)[1])
    entry, members = getattr(holder, "entry", None), getattr(holder, "members", ())
    if entry in ("open", "work") and members:
        yield (
            f'shared.incentive: members are of no use with entry = "{entry}", by which anyone gets in; "listed" and '
            '"invited" are for them'
        )
    if entry in ("listed", "invited"):
        for peer in sorted(set(shared.agreement.validators) - set(members)):
            yield f"shared.incentive: the validator {peer} is none of the members: it decides, and cannot contribute"
    for peer in sorted(peer for peer, times in Counter(members).items() if times > 1):
        yield f"shared.incentive: members names {peer} more than once"


def notes(config: RunConfig) -> list[str]:
    """What is allowed and still worth a second look."""
    found, shared = [], config.shared
    if shared.reducer.name == "sparseloco" and shared.outer.nesterov:
        found.append(
            f"shared.outer.nesterov = {shared.outer.nesterov:g} comes on top of sparseloco's residual, which already "
            "acts as momentum; 0.0 is usual"
        )
    if shared.reducer.name == "average" and not shared.outer.nesterov:
        found.append("shared.outer.nesterov is 0: the average reducer is usually given momentum, 0.6 to 0.9")
    deciding = len(shared.agreement.validators)
    if deciding < 3:
        found.append(
            f"shared.agreement.validators names {deciding}: the run stands still while "
            f"{'it is' if deciding == 1 else 'one of them is'} down; of 3 any one may be, and of 4 any one may even lie"
        )
    if hasattr(resolve("incentive", shared.incentive)[0], "Local") and not config.local.incentive:
        found.append(
            f"[local.incentive] is empty: this machine takes no part in what {shared.incentive.name} does "
            "outside of the swarm. Right for most contributors; a validator should have its settings there"
        )
    if config.local.evaluator.wanted:
        found.append("local.evaluator: this peer watches and measures; it contributes nothing and decides nothing")
    found += _notes_on_entry(shared)
    found += _notes_on_data(config)
    host = config.local.metrics.prometheus.rpartition(":")[0].strip("[]")
    if host and host not in LOOPBACK:
        found.append(
            f"local.metrics.prometheus listens on {host}: whoever reaches that port reads this peer's numbers, without "
            "a password; 127.0.0.1 is for this machine only"
        )
    if (every := config.local.checkpoints.keep_every) > shared.rounds:
        found.append(
            f"local.checkpoints.keep_every = {every} is more than shared.rounds = {shared.rounds}: no anchor is kept "
            "for good; write fewer, or 0"
        )
    if not config.local.network.bootstrap:
        found.append(
            "local.network.bootstrap is empty: right for the run's first peer (a validator); every other peer needs "
            "an address that `elastic bootstrap` printed"
        )
    return found


def _notes_on_data(config: RunConfig) -> list[str]:
    found, shared = [], config.shared
    away = [name for name, where in config.local.data.sources.items() if "://" in where]
    if away and shared.data.sources and shared.data.block == 1:
        found.append(
            f"shared.data.block is 1 and the source {away[0]} lies elsewhere: each sequence may need its own shard, "
            f"{shared.inner.steps * shared.inner.batch_size:,} in a round; see docs/data.md"
        )
    if shared.data.phases and (late := shared.data.phases[-1].from_round) > shared.rounds:
        found.append(f"shared.data.phases: from_round = {late} is after the last of shared.rounds = {shared.rounds}")
    return found


def check_entry(address: str, key: str = "local.network.bootstrap") -> None:
    """An address of an entry point or a relay: /ip4/…/tcp/…/p2p/12D3Koo…

    Raises:
        ConfigError: it has another form; the message names the part.
    """
    where = f'{key}: "{address:.120}"'
    parts = address.split("/")
    _check_transport(parts[:5], ENTRY_PROTOCOLS, where, ENTRY_FORM)
    if len(parts) != 7 or parts[5] != "p2p":
        raise ConfigError(f'{where} does not end in the entry point\'s "/p2p/12D3Koo…"; expected {ENTRY_FORM}')
    check_peer(PeerId(parts[6]), where)


def entry_socket(address: str) -> tuple[str, int]:
    """Host and port of an address that `check_entry` takes."""
    _, _, host, _, port, *_ = address.split("/")
    return host, int(port)


def _check_transport(parts: list[str], protocols: tuple[str, ...], where: str, form: str) -> None:
    """/protocol/host/tcp/port, split at the slashes."""
    if len(parts) != 5 or parts[0] or not parts[2]:
        raise ConfigError(f"{where} is not an address; expected {form}")
    if parts[1] not in protocols:
        near = difflib.get_close_matches(parts[1], protocols, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(protocols)}."
        raise ConfigError(f'{where}: "{parts[1]}" cannot begin it; {hint} Expected {form}')
    if parts[1] in ("ip4", "ip6"):
        kind = ipaddress.IPv4Address if parts[1] == "ip4" else ipaddress.IPv6Address
        try:
            kind(parts[2])
        except ValueError as error:
            name = "4" if parts[1] == "ip4" else "6"
            raise ConfigError(
                f'{where}: "{parts[2]}" is not an IPv{name} address (a name goes after /dns4/); expected {form}'
            ) from error
    if parts[3] != "tcp" or re.fullmatch("[0-9]{1,5}", parts[4]) is None or not 1 <= int(parts[4]) <= 65535:
        raise ConfigError(f'{where}: expected "/tcp/" and a port after the host, as in {form}')


def check_peer(peer: PeerId, where: str) -> None:
    """Whether this is a peer id at all; `where` it stands.

    Raises:
        ConfigError: it is none.
    """
    try:
        public_key_of(peer)
    except (SignatureInvalidError, ValueError) as error:
        raise ConfigError(
            f'{where}: "{peer:.64}" {NO_PEER_ID}, and `elastic bootstrap` at the end of an address'
        ) from error


def _check_host(host: str) -> None:
    try:
        ipaddress.IPv4Address(host)
    except ValueError as error:
        raise ConfigError(
            f'local.network.host = "{host}" is not an IPv4 address of this machine; write "0.0.0.0" for all of them'
        ) from error


def _check_paths(config: RunConfig) -> None:
    local = config.local
    if local.corpus is not None and not local.corpus.is_file():
        raise ConfigError(
            f"local.corpus: there is no file {local.corpus}; write the path of the text, from the run file's folder"
        )
    for table, secret in (("trace", local.trace.authorization), ("metrics", local.metrics.authorization)):
        if secret is not None:
            _check_secret(secret, f"local.{table}.authorization")
    for field, path in (("state_dir", local.state_dir), ("key", config.key_path.parent)):
        blocking = next((each for each in (path, *path.parents) if each.exists()), path)
        if not blocking.is_dir():
            raise ConfigError(f"local.{field}: {blocking} is a file and cannot be a folder; choose another place")


def _check_secret(secret: Path, where: str) -> None:
    if not secret.is_file():
        raise ConfigError(
            f"{where}: there is no file {secret}; write into it what the collector's operator "
            'gave you, "Basic …" or "Bearer …", and chmod 600'
        )
    if not os.access(secret, os.R_OK):
        raise ConfigError(
            f"{where}: who runs this cannot read {secret}, and nothing would be exported; make it the peer's own: "
            f"install -o USER -m 600 {secret.name} …"
        )


def _check_model(config: RunConfig, sizes: Any) -> None:
    """`sizes` has what the model's `Config` says of itself; a model that does not say cannot be checked."""
    data, inner = config.shared.data, config.shared.inner
    vocab_size, longest = getattr(sizes, "vocab_size", None), getattr(sizes, "max_sequence_length", None)
    if isinstance(vocab_size, int) and vocab_size < data.vocab_size:
        raise ConfigError(
            f"shared.model has vocab_size = {vocab_size} and shared.data {data.vocab_size}: the text would have tokens "
            f"the model does not know; write vocab_size = {data.vocab_size} in [shared.model]"
        )
    if isinstance(longest, int) and longest < inner.sequence_length:
        raise ConfigError(
            f"shared.inner.sequence_length = {inner.sequence_length} is more than the model takes ({longest}); "
            "lower it, or raise max_sequence_length in [shared.model]"
        )
