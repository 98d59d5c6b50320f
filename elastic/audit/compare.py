"""`elastic incentives compare`: what other incentives would have made of a run's evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, isfinite
from typing import Protocol, runtime_checkable

from elastic.audit.evidence import Witness
from elastic.contracts import Incentive
from elastic.messages import NO_DIGEST, ContributionHeader, Evidence, PeerId, RoundIndex, Scoreboard
from elastic.verify.ratings import Ratings

ABREAST = 3
"""So many incentives side by side fit into 100 columns; more follow below."""
COLUMN = 27
NAME = 13
ROUNDING = 1e-9
NOBODY = "(nobody)"
"""Has what is burnt, or what there was while nobody had a score."""
SCORE = "score   what the incentive thinks of it in the end"
EARNED = "earned  of {emission:g} in each of {rounds} rounds, by the weights after it"
LEGEND = """\
share   its part of the outer steps, over all rounds
weight  its part of what there is to earn, in the end
        set by who saw this, which on a chain gives none to itself; (nobody) has what is burnt
{amount}
out     rounds in which it contributed and would not have been asked to"""


@runtime_checkable
class Paying(Protocol):
    """An incentive by which peers earn otherwise than in proportion to their scores."""

    def payout(self, board: Scoreboard, payer: PeerId) -> Mapping[PeerId, float]:
        """Peer → part of what there is to earn after that board, as `payer` would have it.

        They sum to 1, or less: the rest goes to nobody.
        """
        ...


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
    weight: float = 0.0
    """Part of what there is to earn then."""
    earned: float = 0.0
    """Sum of its weights after all rounds: of an emission of 1 per round."""


@dataclass(slots=True)
class Books:
    """All peers under one incentive."""

    rounds: int = 0
    """In which there were shares."""
    paid: int = 0
    """All of them."""
    accounts: dict[PeerId, Account] = field(default_factory=dict)

    def of(self, peer: PeerId) -> Account:
        """A peer's account, opened if need be."""
        return self.accounts.setdefault(peer, Account())

    def pay(self, board: Scoreboard, weights: Mapping[PeerId, float]) -> None:
        """A round is over."""
        self.paid += 1
        for peer in board.scores:
            self.of(peer)
        for peer, account in self.accounts.items():
            account.score, account.weight = board.scores.get(peer, 0.0), weights.get(peer, 0.0)
            account.earned += account.weight

    def unpaid(self) -> Account:
        """What went to nobody."""
        given = self.accounts.values()
        return Account(
            weight=_rest(self.paid > 0, fsum(each.weight for each in given)),
            earned=_rest(self.paid, fsum(each.earned for each in given)),
        )


def _rest(whole: float, given: float) -> float:
    """What is left; dust that rounding leaves is nothing."""
    rest = whole - given
    return rest if rest > ROUNDING * whole else 0.0


def play(witness: Witness, incentive: Incentive) -> Books:
    """A run's evidence through one incentive: who would have been asked, with what share, and who would earn how much.

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
        incentive.hear(seen.invitations)
        board = incentive.score(seen.round, ratings.take_in(seen.round, seen.evidence))
        books.rounds += bool(headers)
        books.pay(board, weights(incentive, board, witness.peer))
    return books


def weights(incentive: Incentive, board: Scoreboard, payer: PeerId) -> Mapping[PeerId, float]:
    """Peer → part of what there is to earn after that board, as `payer` would have it: by score, if the incentive does
    not pay otherwise. They sum to 1, or less: the rest goes to nobody."""
    if isinstance(incentive, Paying):
        return incentive.payout(board, payer)
    positive = {peer: score for peer, score in board.scores.items() if isfinite(score) and score > 0}
    return {peer: score / fsum(positive.values()) for peer, score in positive.items()}


def table(books: Mapping[str, Books], names: Mapping[PeerId, str], emission: float | None = None) -> list[str]:
    """Lines for a terminal: a row per peer, and for each incentive its part of everything.

    Args:
        books: by what the incentive is called.
        names: of peers that have one.
        emission: tokens or credits per round, of which each peer's part is shown in place of its score.
    """
    peers = sorted({peer for each in books.values() for peer in each.accounts})
    lines, labels = [], list(books)
    for first in range(0, len(labels), ABREAST):
        abreast = labels[first : first + ABREAST]
        amount = f"{' share weight':<13} {'score' if emission is None else 'earned':>8}  out"
        lines.append(_row("peer", [each[-COLUMN:] for each in abreast]))
        lines.append(_row("", [amount] * len(abreast)))
        for peer in peers:
            found = [books[each].accounts.get(peer, Account()) for each in abreast]
            shares = [account.share / max(books[each].rounds, 1) for each, account in zip(abreast, found, strict=True)]
            cells = [
                f"{share:6.1%} {each.weight:6.1%} {_amount(each, emission):>8} {each.left_out:4d}"
                for share, each in zip(shares, found, strict=True)
            ]
            lines.append(_row(names.get(peer, peer[-6:]), cells))
        rests = [books[each].unpaid() for each in abreast]
        lines += [_row(NOBODY, [f"{'':6} {each.weight:6.1%} {_unpaid(each, emission):>8}" for each in rests]), ""]
    rounds = max((each.paid for each in books.values()), default=0)
    told = SCORE if emission is None else EARNED.format(emission=emission, rounds=rounds)
    return lines + LEGEND.format(amount=told).splitlines()


def _row(name: str, cells: Sequence[str]) -> str:
    return (f"{name[:NAME]:<{NAME}}" + "".join(f"  {each:<{COLUMN}}" for each in cells)).rstrip()


def _amount(account: Account, emission: float | None) -> str:
    """Score or earnings, in eight letters."""
    return f"{account.score:.3f}" if emission is None else _short(emission * account.earned)


def _unpaid(rest: Account, emission: float | None) -> str:
    return "" if emission is None else _short(emission * rest.earned)


def _short(number: float) -> str:
    return f"{number:.2f}" if number == 0 or 0.01 <= number < 99_999 else f"{number:.2e}"


def _header(run: str, round_: RoundIndex, each: Evidence) -> ContributionHeader:
    """As much of a commitment as an incentive may look at."""
    return ContributionHeader(
        run=run, round=round_, peer=each.verdict.peer, anchor=NO_DIGEST, proof=NO_DIGEST, payload=NO_DIGEST,
        size_bytes=1, steps=1, tokens=each.tokens, loss=0.0,
    )  # fmt: skip
