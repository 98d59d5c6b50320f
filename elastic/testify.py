"""Validators tell everyone what they think of everyone, and each other what they would change about the run.

Signed scoreboards and wishes lie in the DHT, beside the rounds.
What somebody thinks after round r is told while round r + 1 is under way, and counts from r + 2 on.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from elastic.amend import WISH
from elastic.errors import MalformedError, NetworkError, SignatureInvalidError
from elastic.messages import (
    GENESIS,
    MAX_SCORES,
    Amendment,
    Invitation,
    PeerId,
    RoundIndex,
    RoundPlan,
    Scoreboard,
    Seconds,
    SignedScoreboard,
    digest_of,
)
from elastic.peer import Peer
from elastic.wire.signing import verify

logger = logging.getLogger(__name__)

SCORES = "scores"
"""Record kind of a signed scoreboard."""
INVITATION = "invitation"
"""Of an invitation, by its bearer."""
INVITATIONS = 64
"""So many are looked at in a round."""
LOOK = Seconds(1.0)
"""Between two looks for others' scoreboards."""


@asynccontextmanager
async def testifying(peer: Peer, plan: RoundPlan, wish: Amendment | None) -> AsyncIterator[None]:
    """During the block say what we wish for and what we thought after the last round, and hear what others did.

    A network that loses it costs a round's opinions, and nothing else.
    """
    scored = peer.shared.scoring.sequences > 0
    if not scored and wish is None:
        yield
        return
    talking = asyncio.create_task(_talk(peer, plan, wish, scored))
    try:
        yield
    finally:
        talking.cancel()  # not waited for: it would swallow our own end


async def _talk(peer: Peer, plan: RoundPlan, wish: Amendment | None, scored: bool) -> None:
    if wish is not None:
        with _tolerant(plan.round):
            await peer.exchange.post(WISH, plan.round, wish.canonical())
    if scored and peer.invitation is not None:
        with _tolerant(plan.round):
            await peer.exchange.post(INVITATION, GENESIS, peer.invitation.canonical())
    round_ = RoundIndex(plan.round - 1)
    if scored and plan.decides and peer.board is not None and peer.board.round == round_:
        with _tolerant(round_):
            await peer.exchange.post(SCORES, round_, _ours(peer, peer.board).canonical())
    if scored and plan.decides:
        with _tolerant(plan.round):
            peer.incentive.hear(invitations(peer, plan, await peer.exchange.records(INVITATION, GENESIS)))
    missing = set(plan.validators) if scored else set()
    while missing:
        with _tolerant(round_):
            said = await peer.exchange.records(SCORES, round_)
            found = heard(peer, round_, {sender: said[sender] for sender in missing & said.keys()})
            peer.incentive.hear(found)
            missing -= {each.peer for each in found}
        await peer.clock.sleep(LOOK)


@contextmanager
def _tolerant(round_: RoundIndex) -> Iterator[None]:
    """What the network fails is tried again the next time."""
    try:
        yield
    except NetworkError as error:
        logger.info("round %d: scores: %s", round_, error)


def heard(peer: Peer, round_: RoundIndex, said: Mapping[PeerId, bytes]) -> list[SignedScoreboard]:
    """Genuine testimonies of validators on that round, in PeerId order; the rest is nobody's."""
    found, deciding = [], peer.agreement.terms(RoundIndex(round_ + 1)).validators
    for sender in sorted(said.keys() & set(deciding)):
        try:
            testimony = SignedScoreboard.from_bytes(said[sender])
            verify(testimony)
        except (MalformedError, SignatureInvalidError) as error:
            logger.info("round %d: the scores of %s: %s", round_, sender, error)
            continue
        if (testimony.run, testimony.round, testimony.peer) == (peer.shared.run, round_, sender):
            found.append(testimony)
    return found


def invitations(peer: Peer, plan: RoundPlan, shown: Mapping[PeerId, bytes]) -> list[Invitation]:
    """Genuine ones that their own bearers show: some in each round, if there are very many."""
    found = []
    for bearer in sorted(shown, key=lambda each: digest_of(f"{plan.round}:{each}".encode()))[:INVITATIONS]:
        try:
            invitation = Invitation.from_bytes(shown[bearer])
            verify(invitation)
        except (MalformedError, SignatureInvalidError) as error:
            logger.info("round %d: the invitation of %s: %s", plan.round, bearer, error)
            continue
        if (invitation.run, invitation.invited) == (plan.run, bearer):
            found.append(invitation)
    return found


def _ours(peer: Peer, board: Scoreboard) -> SignedScoreboard:
    """If there are too many: the best, and the worst; a crowd that is shut out keeps nobody's reputation untold."""
    ranked = sorted(board.scores, key=lambda each: (-board.scores[each], each))
    told = {*ranked[: MAX_SCORES // 2], *ranked[-MAX_SCORES // 2 :]}
    scores = {each: round(board.scores[each], 6) for each in sorted(told)}
    return peer.identity.sign(SignedScoreboard(run=peer.shared.run, round=board.round, peer=peer.id, scores=scores))
