"""Validators tell everyone what they think of everyone: signed scoreboards in the DHT, off the critical path."""

import logging
from collections.abc import Mapping

from elastic.errors import MalformedError, NetworkError, SignatureInvalidError
from elastic.messages import MAX_SCORES, PeerId, RoundIndex, RoundPlan, Scoreboard, SignedScoreboard
from elastic.peer import Peer
from elastic.wire.signing import verify

logger = logging.getLogger(__name__)

SCORES = "scores"
"""Record kind of a testimony."""


async def testify(peer: Peer, plan: RoundPlan, board: Scoreboard) -> None:
    """Say what we think after this round, if we decide; hear what the others thought after the last one.

    A network that loses it costs a round's opinions, and nothing else.
    """
    if not peer.shared.scoring.sequences:
        return
    try:
        if peer.agreement.validates(peer.id):
            await peer.exchange.post(SCORES, plan.round, _ours(peer, board).canonical())
        said = await peer.exchange.records(SCORES, RoundIndex(plan.round - 1))
    except NetworkError as error:
        logger.warning("round %d: scores: %s", plan.round, error)
        return
    peer.incentive.hear(heard(peer, RoundIndex(plan.round - 1), said))


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
