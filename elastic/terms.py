"""A run's terms as this machine knows them, and who would have them be others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from elastic.agreement.charter import Charter
from elastic.amend import read_order, read_wishes
from elastic.audit.evidence import RUN_FILE, names_in
from elastic.config import RunConfig, load_config
from elastic.errors import ConfigError
from elastic.messages import GENESIS, Amendment, Manifest, PeerId, RoundIndex, Terms
from elastic.names import labels, printable
from elastic.reports import Wishes
from elastic.sections import PluginChoice
from elastic.state.chain import CHAIN_FILE, amendments_in
from elastic.wire.signing import Identity


@dataclass(frozen=True, slots=True)
class AgreedTerms:
    """Where a run stands, as far as this machine knows."""

    terms: Terms
    amended: RoundIndex
    """The round whose manifest brought them; 0: they are the run file's."""


def standing(config: RunConfig, folder: Path | None = None) -> AgreedTerms:
    """The newest terms in the peer's chain, which may be written to meanwhile.

    Args:
        folder: the state directory; None: the run file's.

    Raises:
        StateError: the chain cannot be read.
        MalformedError: it is of another run.
    """
    shared, known = config.shared, amendments_of(config, folder)
    charter = Charter(shared.run, shared.terms(), known)
    return AgreedTerms(charter.newest(), known[-1].round if known else GENESIS)


def amendments_of(config: RunConfig, folder: Path | None = None) -> list[Manifest]:
    """What changed the terms so far, in the chain of the peer with this run file.

    Args:
        folder: the state directory; None: the run file's.

    Raises:
        StateError: the chain cannot be read.
    """
    return amendments_in((folder or config.local.state_dir) / CHAIN_FILE)


def history(configs: Sequence[RunConfig]) -> Iterator[tuple[RoundIndex, Terms, Terms]]:
    """Every change of a run's terms: the first round under the new ones, what they were, what they are.

    Args:
        configs: of peers of one run; the one that knows most is asked.

    Raises:
        StateError: a chain cannot be read.
    """
    terms = configs[0].shared.terms()
    for manifest in max(map(amendments_of, configs), key=len):
        assert manifest.amendment is not None, "that is why it is among them"
        before, terms = terms, manifest.amendment.applied(terms)
        yield RoundIndex(manifest.round + 1), before, terms


def run_files(where: Path) -> list[RunConfig]:
    """Run files of peers of one run: the file itself, or those in a peer's folder, or in folders in that one.

    Raises:
        ConfigError: there are none, one cannot be read, or they are of several runs.
    """
    if not where.is_dir():
        return [load_config(where)]
    own = where / RUN_FILE
    found = [load_config(path) for path in ([own] if own.is_file() else sorted(where.glob(f"*/{RUN_FILE}")))]
    if not found:
        raise ConfigError(f"{where}: no {RUN_FILE} there: give the run file itself")
    if len({each.shared.digest() for each in found}) > 1:
        raise ConfigError(f"{where}: the run files there are of several runs: give one of them")
    return found


def peer_of(config: RunConfig) -> PeerId | None:
    """This machine's peer, if it has a key already. None is made.

    Raises:
        ConfigError: the key cannot be used.
    """
    return Identity.load(config.key_path).peer if config.key_path.exists() else None


class House:
    """The peers of one run on this machine, and what they know of the others."""

    def __init__(self, configs: list[RunConfig]) -> None:
        """From their folders.

        Args:
            configs: of one run, at least one.

        Raises:
            ConfigError, StateError: something in their folders cannot be read.
        """
        self.configs = configs
        self.now = max(map(standing, configs), key=lambda each: each.amended)
        self.peers = {peer: each for each in configs if (peer := peer_of(each)) is not None}
        """Those that have a key."""
        self._heard = self._newest_wishes()
        self._names: dict[PeerId, str] = dict(self._heard.names) if self._heard is not None else {}
        for each in configs:
            self._names |= names_in(each.local.state_dir)
            if (peer := peer_of(each)) is not None and each.local.name:
                self._names[peer] = each.local.name

    @property
    def deciding(self) -> dict[PeerId, RunConfig]:
        """Those that are validators."""
        return {peer: each for peer, each in self.peers.items() if peer in self.now.terms.validators}

    def wanted(self) -> dict[Amendment, list[PeerId]]:
        """What validators would change, and who would, most of them first.

        Of this house that is what was ordered here; of others what was heard.
        """
        wishes = dict(self._heard.wishes) if self._heard is not None else {}
        for peer in self.deciding:
            wishes.pop(peer, None)
        for peer, config in self.deciding.items():
            order = read_order(config.local.state_dir)
            if order is not None and (order.run, order.amended) == (config.shared.run, self.now.amended):
                wishes[peer] = order.amendment
        found: dict[Amendment, list[PeerId]] = {}
        for peer in sorted(wishes.keys() & set(self.now.terms.validators)):
            found.setdefault(wishes[peer], []).append(peer)
        return dict(sorted(found.items(), key=lambda each: -len(each[1])))

    def heard_in(self) -> RoundIndex | None:
        """In which round the others were heard last."""
        return self._heard.round if self._heard is not None else None

    def called(self, peer: PeerId) -> str:
        """A peer in few words: its name, or how its id ends; both, if somebody else has that name."""
        name = labels({*self._names, peer}, self._names)[peer]
        return " ".join(part for part in (name, self._mark(peer)) if part)

    def full(self, peer: PeerId) -> str:
        """A peer id, and whose it is."""
        return " ".join(part for part in (peer, printable(self._names.get(peer, "")), self._mark(peer)) if part)

    def _mark(self, peer: PeerId) -> str:
        """Where one peer is looked at, which one it is."""
        return "(this machine)" if len(self.configs) == 1 and peer in self.peers else ""

    def _newest_wishes(self) -> Wishes | None:
        heard = [
            wishes for each in self.configs
            if (wishes := read_wishes(each.local.state_dir)) is not None
            and (wishes.run, wishes.amended) == (each.shared.run, self.now.amended)
        ]  # fmt: skip
        return max(heard, key=lambda each: each.round, default=None)


def changes(before: Terms, after: Terms, called: Callable[[PeerId], str]) -> Iterator[str]:
    """What is another in other terms, a line each; `called`: how peers are named."""
    if before.incentive != after.incentive:
        yield f"incentive  {incentive_text(before.incentive)} -> {incentive_text(after.incentive)}"
    for peer in sorted(set(after.validators) - set(before.validators)):
        yield f"validator  + {called(peer)}"
    for peer in sorted(set(before.validators) - set(after.validators)):
        yield f"validator  - {called(peer)}"


def incentive_text(canonical: str) -> str:
    """An incentive for people: its name, and those of its settings that were chosen."""
    try:
        choice = PluginChoice.from_canonical(canonical)
    except ConfigError:
        return printable(canonical)  # a stranger wishes for nonsense
    settings = f" {orjson.dumps(choice.settings).decode()}" if choice.settings else ""
    return printable(choice.name + settings)
