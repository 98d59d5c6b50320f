"""`elastic incentives compare`: what other incentives would have made of a run's evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from elastic.audit.evidence import Witness
from elastic.contracts import Incentive
from elastic.messages import NO_DIGEST, ContributionHeader, Evidence, PeerId, RoundIndex
from elastic.verify.ratings import Ratings


@dataclass(slots=True)
class Account:
    """One peer under one incentive."""

    share: float = 0.0
    """Sum of its shares over the rounds;"""
    rounds: int = 0
    """rounds in which it would have been asked to contribute,"""
    left_out: int = 0
    """and in which it contributed and would not have been asked."""
    score: float = 0.0
    """After the last round."""


@dataclass(slots=True)
class Books:
    """All peers under one incentive."""

    rounds: int = 0
    accounts: dict[PeerId, Account] = field(default_factory=dict)

    def of(self, peer: PeerId) -> Account:
        """A peer's account, opened if need be."""
        return self.accounts.setdefault(peer, Account())


def play(witness: Witness, incentive: Incentive) -> Books:
    """A run's evidence through one incentive: who would have been asked, and with what share.

    Contributions of peers that it would have left out stay evidence: nobody knows how the run had gone without them.
    """
    books, ratings = Books(), Ratings()
    for seen in witness.rounds:
        present = [each.verdict.peer for each in seen.evidence]
        asked = set(incentive.select(seen.round, present, len(present)))
        accepted = [each for each in seen.evidence if each.verdict.accepted]
        headers = [_header(seen.run, seen.round, each) for each in accepted if each.verdict.peer in asked]
        for peer, share in incentive.shares(headers).items():
            books.of(peer).share += share
        for each in accepted:
            account = books.of(each.verdict.peer)
            account.rounds += each.verdict.peer in asked
            account.left_out += each.verdict.peer not in asked
        board = incentive.score(seen.round, ratings.take_in(seen.round, seen.evidence))
        books.rounds += bool(headers)
        for peer in present:
            books.of(peer).score = board.scores.get(peer, 0.0)
    return books


def table(books: Mapping[str, Books], names: Mapping[PeerId, str]) -> list[str]:
    """Lines for a terminal: a row per peer, and for each incentive its part of everything and its score."""
    width = max(len(name) for name in books)
    peers = sorted({peer for each in books.values() for peer in each.accounts})
    column = max(width, 24)
    lines = [f"{'peer':<14}" + "".join(f"  {name:<{column}}" for name in books)]
    lines.append(f"{'':<14}" + "".join(f"  {'share   score  left out':<{column}}" for _ in books))
    for peer in peers:
        cells = []
        for each in books.values():
            account = each.accounts.get(peer, Account())
            share = account.share / max(each.rounds, 1)
            cells.append(f"  {f'{share:6.1%} {account.score:7.3f} {account.left_out:9d}':<{column}}")
        lines.append(f"{names.get(peer, peer[-6:])[:14]:<14}" + "".join(cells))
    return lines


def _header(run: str, round_: RoundIndex, each: Evidence) -> ContributionHeader:
    """As much of a commitment as an incentive may look at."""
    return ContributionHeader(
        run=run, round=round_, peer=each.verdict.peer, anchor=NO_DIGEST, proof=NO_DIGEST, payload=NO_DIGEST,
        size_bytes=1, steps=1, tokens=each.tokens, loss=0.0,
    )  # fmt: skip
