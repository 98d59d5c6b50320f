"""Validators tell everyone what they think of everyone: signed scoreboards in the DHT, beside the rounds.

What somebody thinks after round r is told while round r + 1 is under way, and counts from r + 2 on.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from elastic.errors import MalformedError, NetworkError, SignatureInvalidError
from elastic.messages import MAX_SCORES, PeerId, RoundIndex, RoundPlan, Scoreboard, Seconds, SignedScoreboard
from elastic.peer import Peer
from elastic.wire.signing import verify

logger = logging.getLogger(__name__)

SCORES = "scores"
"""Record kind of a signed scoreboard."""
LOOK = Seconds(1.0)
"""Between two looks for others' scoreboards."""


@asynccontextmanager
async def testifying(peer: Peer, plan: RoundPlan) -> AsyncIterator[None]:
    """During the block say what we thought after the last round, if we decide, and hear what others did.

    A network that loses it costs a round's opinions, and nothing else.
    """
    if not peer.shared.scoring.sequences:
        yield
        return
    talking = asyncio.create_task(_talk(peer, RoundIndex(plan.round - 1)))
    try:
        yield
    finally:
        talking.cancel()  # not waited for: it would swallow our own end


async def _talk(peer: Peer, round_: RoundIndex) -> None:
    if peer.agreement.validates(peer.id) and peer.board is not None and peer.board.round == round_:
        with _tolerant(round_):
            await peer.exchange.post(SCORES, round_, _ours(peer, peer.board).canonical())
    missing = set(peer.shared.agreement.validators)
    while missing:
        with _tolerant(round_):
            said = await peer.exchange.records(SCORES, round_)
            found = heard(peer, round_, {sender: body for sender, body in said.items() if sender in missing})
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
    found = []
    for sender in sorted(said):
        if not peer.agreement.validates(sender):
            continue
        try:
            testimony = SignedScoreboard.from_bytes(said[sender])
            verify(testimony)
        except (MalformedError, SignatureInvalidError) as error:
            logger.info("round %d: the scores of %s: %s", round_, sender, error)
            continue
        if (testimony.run, testimony.round, testimony.peer) == (peer.shared.run, round_, sender):
            found.append(testimony)
    return found


def _ours(peer: Peer, board: Scoreboard) -> SignedScoreboard:
    best = sorted(board.scores, key=lambda each: (-abs(board.scores[each]), each))[:MAX_SCORES]
    scores = {each: round(board.scores[each], 6) for each in sorted(best)}
    return peer.identity.sign(SignedScoreboard(run=peer.shared.run, round=board.round, peer=peer.id, scores=scores))
