"""The model card: what was trained, by whom, on what, and how anyone can check it; from the run's own records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from elastic.actors.anchors import Held
from elastic.audit.evidence import account_of
from elastic.config import RunConfig
from elastic.config_data import DataConfig
from elastic.errors import StateError
from elastic.messages import Manifest, PeerId, RoundIndex
from elastic.names import printable
from elastic.reports import STATUS_FILE, PeerStatus, read_kept
from elastic.state.chain import CHAIN_FILE, manifests_in
from elastic.terms import incentive_text

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [elastic]
---

# {run}

A language model of {params} parameters, trained in {steps} by {contributors} that need not trust each other.
`elastic export` wrote this card from the records of the run.

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

| | |
|---|---|
{rows}

## Contributors

{table}

## Check it

Each round ended in a manifest that a quorum of validators signed and that names the one before; the digest of the last
is the head above. Who has the run file and the folder of a peer rebuilds this anchor from the genesis, bit for bit:

    elastic replay FOLDER --run-file run.toml --round {round}
"""


@dataclass(slots=True)
class Part:
    """What one contributor had in a run."""

    rounds: int = 0
    """In which its contribution counted."""
    shares: float = 0.0
    """Their sum; each is its part of that round's outer step."""
    tokens: int = 0
    """As it said itself, in the rounds that somebody here wrote down."""


@dataclass(frozen=True, slots=True)
class Account:
    """A run up to a model."""

    manifests: tuple[Manifest, ...]
    """Of the rounds before it, as far as they are here, in order."""
    parts: dict[PeerId, Part] = field(default_factory=dict)
    unknown: int = 0
    """Contributions that counted, of which nobody here wrote down how many tokens they took."""

    @property
    def stepped(self) -> int:
        """Rounds with an outer step."""
        return sum(not each.void for each in self.manifests)

    @property
    def tokens(self) -> int:
        """Of all contributions that counted, as far as they were written down."""
        return sum(part.tokens for part in self.parts.values())


def account(configs: Sequence[RunConfig], before: RoundIndex) -> Account:
    """What these peers' records say of the rounds before that one.

    Raises:
        StateError: a chain cannot be read, or two of them contradict each other.
    """
    manifests = _chain(configs, before)
    tokens = {
        (seen.round, each.verdict.peer): each.tokens
        for config in configs
        if (witness := account_of(config.local.state_dir)) is not None
        for seen in witness.rounds
        for each in seen.evidence
        if each.verdict.accepted
    }
    parts, unknown = dict[PeerId, Part](), 0
    for manifest in manifests:
        for entry in manifest.counted:
            part = parts.setdefault(entry.peer, Part())
            part.rounds += 1
            part.shares += entry.share
            part.tokens += tokens.get((manifest.round, entry.peer), 0)
            unknown += (manifest.round, entry.peer) not in tokens
    return Account(manifests, parts, unknown)


def _chain(configs: Sequence[RunConfig], before: RoundIndex) -> tuple[Manifest, ...]:
    found: dict[RoundIndex, Manifest] = {}
    for config in configs:
        path = config.local.state_dir / CHAIN_FILE
        for manifest in manifests_in(path):
            known = found.setdefault(manifest.round, manifest)
            if manifest.run != config.shared.run or known.digest() != manifest.digest():
                raise StateError(
                    f"{path}: round {manifest.round}: of another run, or another manifest than others have"
                )
    chain = [found[round_] for round_ in sorted(found) if round_ < before]
    for one, two in pairwise(chain):
        if two.round == one.round + 1 and two.previous != one.digest():
            raise StateError(f"manifest {two.round} does not continue manifest {one.round}: see `elastic replay`")
    return tuple(chain)


def card(held: Held, configs: Sequence[RunConfig], num_params: int) -> str:
    """The card, in Markdown.

    Raises:
        StateError: see `account`.
    """
    run, found = held.config.shared, account(configs, held.round)
    rows = [*_of_the_model(held, num_params), *_of_the_run(held, found), *_loss(held, configs)]
    return CARD.format(
        run=run.run,
        params=f"{num_params:,}",
        contributors=_number(len(found.parts), "contributor"),
        steps=_number(found.stepped, "outer step"),
        rows="\n".join(f"| {what} | {says} |" for what, says in rows),
        table="\n".join(_contributors(found)),
        round=held.round,
    )


def about_text(data: DataConfig) -> list[tuple[str, str]]:
    """Rows that say what the run trains on."""
    if not data.sources:
        return [("text", f"{_code(data.corpus)}, SHA-256 {_code(data.sha256 or 'not said')}")]
    told = [f"{_code(each.name)}, weight {each.weight:g}, index {_code(each.index)}" for each in data.sources]
    later = [
        f"from round {phase.from_round}: " + ", ".join(f"{name} {part:g}" for name, part in phase.weights.items())
        for phase in data.phases
    ]
    return [("sources", "; ".join([*told, *later]))]


def _of_the_model(held: Held, num_params: int) -> list[tuple[str, str]]:
    shared = held.config.shared
    data, choice = shared.data, shared.model
    settings = ", ".join(f"{name} = {value}" for name, value in choice.settings.items())
    return [
        ("parameters", f"{num_params:,}"),
        ("model", _code(f"{choice.name} {settings}".strip())),
        *about_text(data),
        ("tokenizer", _code(f"{data.tokenizer}, {data.vocab_size} tokens")),
        ("reducer", _code(shared.reducer.name)),
    ]


def _of_the_run(held: Held, found: Account) -> list[tuple[str, str]]:
    shared, chain = held.config.shared, found.manifests
    terms = shared.terms()
    for manifest in chain:
        if manifest.amendment is not None:
            terms = manifest.amendment.applied(terms)
    rounds = max(0, held.round - 1)
    lacking = held.round - len(chain)
    head = chain[-1].digest() if chain and chain[-1].round == rounds else None
    more = f", and of {_number(found.unknown, 'contribution')} nobody here wrote it down" if found.unknown else ""
    return [
        ("run", f"{_code(shared.run)}, digest of its settings {_code(shared.digest())}"),
        ("rounds", f"{rounds} of {shared.rounds}, {found.stepped} with an outer step"
         + (f"; {_number(lacking, 'manifest')} of them not here" if lacking else "")),
        ("tokens", f"{found.tokens:,} in contributions that counted, as contributors said{more}"),
        ("incentive", _code(incentive_text(terms.incentive))),
        ("validators", ", ".join(_code(peer) for peer in terms.validators)),
        ("anchor", _code(held.digest)),
        ("head of the manifests", _code(head) if head else "not here"),
    ]  # fmt: skip


def _loss(held: Held, configs: Sequence[RunConfig]) -> list[tuple[str, str]]:
    """What a peer measured of this anchor, if one did."""
    for config in configs:
        status = read_kept(config.local.state_dir / STATUS_FILE, PeerStatus)
        if status is not None and status.digest == held.digest and status.held_out is not None:
            return [("held-out loss", f"{status.held_out:.4f} nats per token")]
    return []


def _contributors(found: Account) -> list[str]:
    """Who, most of the work first."""
    if not found.parts:
        return ["Nobody yet: this is the anchor that the run begins with."]
    ordered = sorted(found.parts.items(), key=lambda each: (-each[1].shares, each[0]))
    return [
        "| peer | rounds that counted | tokens | share of all outer steps |", "|---|---:|---:|---:|",
        *(f"| {_code(peer)} | {part.rounds} | {part.tokens:,} | {part.shares / found.stepped:.2%} |"
          for peer, part in ordered),
    ]  # fmt: skip


def _code(text: Any) -> str:
    """As it stands: nothing in it is Markdown."""
    return f"`{printable(str(text)).replace('`', chr(39)).replace('|', '/')}`"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
