"""What a validator would change about the run from the next round on, and whether enough others would.

The terms change when a quorum of the present validators wish the very same change: their operators ordered it
(`elastic amend`), or the incentive fills a seat. Wishes are posted at the beginning of a round; who proposes takes up
its own if it sees so many like it, and nobody votes for one that is not its own.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from elastic.agreement.simplex import quorum
from elastic.errors import MalformedError
from elastic.messages import GENESIS, Amendment, PeerCard, PeerId, RoundIndex, RoundPlan, Terms
from elastic.peer import Peer
from elastic.reports import ORDER_FILE, WISHES_FILE, Order, Wishes, read_kept

logger = logging.getLogger(__name__)

WISH = "wish"
"""Record kind: an `Amendment` that a validator wishes for."""
THERE = 0.75
"""Part of the last rounds in which who shall become a validator counted."""


def wish_of(peer: Peer, plan: RoundPlan) -> Amendment | None:
    """What we would change after this round, if we decide it and would change anything."""
    if not plan.decides:
        return None
    terms = peer.agreement.terms(plan.round)
    ordered, elected = _ordered(peer, plan, terms), _election(peer, plan, terms)
    if ordered is not None and elected is not None:
        return (ordered, elected)[plan.round % 2]  # by turns: an order that few gave stands in nobody's way
    return ordered or elected


async def is_shared(peer: Peer, plan: RoundPlan, wish: Amendment) -> bool:
    """Whether a quorum of validators, with us, wish the same."""
    posted, ours = await peer.exchange.records(WISH, plan.round), wish.canonical()
    alike = [each for each in plan.validators if each == peer.id or posted.get(each) == ours]
    return len(alike) >= quorum(len(plan.validators))


async def wishes_heard(peer: Peer, cards: Iterable[PeerCard]) -> Wishes | None:
    """What the validators wish for in the round under way; or in the one before, who has not said it again yet.

    For people: nothing is decided by it. None: we do not decide, or there is nobody else who does.

    Raises:
        NetworkError: nothing could be heard.
    """
    head = peer.chain.head()
    if head is None:
        return None
    round_ = RoundIndex(head.round + 1)
    validators = peer.agreement.terms(round_).validators
    if peer.id not in validators or len(validators) == 1:
        return None
    wishes: dict[PeerId, Amendment] = {}
    for each in (head.round, round_):
        if each == GENESIS or (each == head.round and head.amendment is not None):
            continue  # what was wished for under other terms is wished for no more
        posted = await peer.exchange.records(WISH, each)
        for author in sorted(posted.keys() & set(validators)):
            try:
                wishes[author] = Amendment.from_bytes(posted[author])
            except MalformedError as error:
                logger.info("round %d: the wish of %s: %s", each, author, error)
    names = {card.peer: card.name for card in cards if card.peer in validators}
    return Wishes(run=peer.shared.run, round=round_, amended=head.amends, wishes=wishes, names=names)


def read_wishes(folder: Path) -> Wishes | None:
    """What the peer with this state directory heard last."""
    return read_kept(folder / WISHES_FILE, Wishes)


def read_order(folder: Path) -> Order | None:
    """What the operator of the peer with this state directory ordered."""
    return read_kept(folder / ORDER_FILE, Order)


def _ordered(peer: Peer, plan: RoundPlan, terms: Terms) -> Amendment | None:
    order = peer.ordered()
    if order is None or (order.run, order.amended) != (plan.run, plan.amended):
        return None
    wanted = _what_is_new(order.amendment, terms)
    return wanted if wanted is not None and _all_are_there(peer, plan, terms, wanted) else None


def _all_are_there(peer: Peer, plan: RoundPlan, terms: Terms, wanted: Amendment) -> bool:
    """Whether those who shall join the validators contribute: with one who never comes, no quorum might ever be."""
    last = peer.chain.get(RoundIndex(plan.round - 1))
    new = set(wanted.validators or ()) - set(terms.validators)
    return all(last is not None and last.counts(each) for each in new)


def _what_is_new(amendment: Amendment, terms: Terms) -> Amendment | None:
    validators = None if amendment.validators == terms.validators else amendment.validators
    incentive = None if amendment.incentive == terms.incentive else amendment.incentive
    if validators is None and incentive is None:
        return None
    return Amendment(validators=validators, incentive=incentive)


def _election(peer: Peer, plan: RoundPlan, terms: Terms) -> Amendment | None:
    """One seat filled, by what all validators see alike: the manifests, and what they told each other of trust."""
    seats, span = peer.shared.agreement.seats, peer.shared.agreement.absent_rounds
    if not seats or plan.round <= span:
        return None
    rounds = range(plan.round - span, plan.round)
    recent = [manifest for each in rounds if (manifest := peer.chain.get(RoundIndex(each))) is not None]
    if len(recent) < span:
        return None  # we were away ourselves
    counted = Counter(entry.peer for manifest in recent for entry in manifest.counted)
    everyone = sorted({*counted, *terms.validators})
    trust = peer.incentive.trust(plan.round, everyone)
    there = {*counted, *(manifest.proposer for manifest in recent)}  # one may decide and not contribute
    gone = [each for each in terms.validators if each not in there or trust.get(each, 0.0) < 0]
    fresh = [
        each for each in everyone
        if each not in terms.validators and counted[each] >= THERE * span and trust.get(each, 0.0) > 0
    ]  # fmt: skip
    if not fresh or not (gone or len(terms.validators) < seats):
        return None

    def rank(each: PeerId) -> tuple[float, int, PeerId]:
        """Roughly by trust, of which each validator has its own view, then by what is agreed."""
        return -round(trust[each], 1), -counted[each], each

    staying = [each for each in terms.validators if each not in gone[:1]]
    return Amendment(validators=tuple(sorted([*staying, min(fresh, key=rank)])), incentive=None)
