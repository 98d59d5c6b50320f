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
from elastic.hearsay import MOST_SHOWN
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
from elastic.verify.ratings import SEASONED
from elastic.wire.signing import verify

logger = logging.getLogger(__name__)

SCORES = "scores"
"""Record kind of a signed scoreboard."""
WITNESS = ("witness", "witness-too", *(f"witness-{number}" for number in range(MOST_SHOWN)))
"""Of others' signed scoreboards, by validators: the two words of a liar, then some that others heard differently."""
ASKING = 16
"""Looks for such in a round: who claims without reason that others lie shall not keep everyone looking."""
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
    if scored and plan.decides:
        with _tolerant(plan.round):
            peer.shown = invitations(peer, plan, await peer.exchange.records(INVITATION, GENESIS))
            peer.incentive.hear(peer.shown)
    if scored:
        await _listen(peer, plan)


async def _listen(peer: Peer, plan: RoundPlan) -> None:
    """Say what we thought of the last round, hear every validator, and find out whose words differ."""
    last, missing, words = RoundIndex(plan.round - 1), set(plan.validators), list[SignedScoreboard]()
    told, asked, answered, looks = False, set[PeerId](), None, 0
    while missing or (asked and looks < ASKING):
        with _tolerant(last):
            if not told:
                await _tell(peer, plan)
                told = True
            said = await peer.exchange.records(SCORES, last)
            found = heard(plan, {sender: said[sender] for sender in missing & said.keys()})
            missing -= {each.peer for each in found}
            words += peer.hearsay.take(found)
            if 2 * len(words) > len(plan.validators):  # of fewer, a liar might be most
                peer.incentive.hear(words)
            asked |= {each for word in found for each in peer.hearsay.questions(word, plan.validators)}
            if answered != asked:
                await _answer(peer, plan, asked)
                answered = set(asked)
            if asked and looks < ASKING:
                looks += 1
                _learn(peer, plan, asked, await _shown(peer, plan))
        await peer.clock.sleep(LOOK)


async def _tell(peer: Peer, plan: RoundPlan) -> None:
    """What we thought after the last round, if that is worth hearing."""
    board, last = peer.board, RoundIndex(plan.round - 1)
    if plan.decides and board is not None and board.round == last and worth_hearing(peer, last):
        word = peer.hearsay.word(peer.id, last) or _ours(peer, plan, board)
        peer.hearsay.take([word])  # where a round is begun again we say the same: two words would be two faces
        await peer.exchange.post(SCORES, last, word.canonical())


async def _answer(peer: Peer, plan: RoundPlan, asked: set[PeerId]) -> None:
    """Show what others cannot have heard."""
    if plan.decides:
        proof = peer.hearsay.proof(plan.round, plan.validators)
        answers = peer.hearsay.answers(RoundIndex(plan.round - 2), asked)
        for kind, word in [*zip(WITNESS, proof, strict=False), *zip(WITNESS[2:], answers, strict=False)]:
            await peer.exchange.post(kind, plan.round, word.canonical())


async def _shown(peer: Peer, plan: RoundPlan) -> list[SignedScoreboard]:
    """Genuine words of validators that validators show, in PeerId order."""
    found = []
    for kind in WITNESS:
        shown = await peer.exchange.records(kind, plan.round)
        words = [_genuine(plan, shown[sender]) for sender in sorted(shown.keys() & set(plan.validators))]
        found += [word for word in words if word is not None and word.peer in plan.validators]
    return found


def _learn(peer: Peer, plan: RoundPlan, asked: set[PeerId], shown: list[SignedScoreboard]) -> None:
    while proof := peer.hearsay.convict(shown):
        logger.warning("round %d: %s tells different peers different things", plan.round, proof[0].peer)
        peer.incentive.hear(proof)
        asked.discard(proof[0].peer)


def worth_hearing(peer: Peer, round_: RoundIndex) -> bool:
    """Whether our scores are more than a list of who arrived.

    Who became a validator late, or lost its disk, has measured nobody; the first ones of a run all begin with nothing.
    """
    return peer.ratings.seasoned or round_ <= SEASONED


@contextmanager
def _tolerant(round_: RoundIndex) -> Iterator[None]:
    """What the network fails is tried again the next time."""
    try:
        yield
    except NetworkError as error:
        logger.info("round %d: scores: %s", round_, error)


def heard(plan: RoundPlan, said: Mapping[PeerId, bytes]) -> list[SignedScoreboard]:
    """Genuine testimonies of validators on the round before, in PeerId order; the rest is nobody's."""
    found = []
    for sender in sorted(said.keys() & set(plan.validators)):
        word = _genuine(plan, said[sender])
        if word and (word.round, word.peer, word.previous) == (plan.round - 1, sender, plan.previous):
            found.append(word)
    return found


def _genuine(plan: RoundPlan, data: bytes) -> SignedScoreboard | None:
    try:
        word = SignedScoreboard.from_bytes(data)
        verify(word)
    except (MalformedError, SignatureInvalidError) as error:
        logger.info("round %d: scores: %s", plan.round, error)
        return None
    return word if word.run == plan.run else None


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


def _ours(peer: Peer, plan: RoundPlan, board: Scoreboard) -> SignedScoreboard:
    """If there are too many: the best, and the worst; a crowd that is shut out keeps nobody's reputation untold."""
    ranked = sorted(board.scores, key=lambda each: (-board.scores[each], each))
    told = {*ranked[: MAX_SCORES // 2], *ranked[-MAX_SCORES // 2 :]}
    said = SignedScoreboard(
        run=plan.run, round=board.round, peer=peer.id, previous=plan.previous,
        scores={each: round(board.scores[each], 6) for each in sorted(told)},
        heard=peer.hearsay.digests(RoundIndex(board.round - 1), plan.validators),
    )  # fmt: skip
    return peer.identity.sign(said)
