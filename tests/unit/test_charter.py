"""Under which terms a round was decided: what proves itself is believed, from whomever it comes, and nothing else."""

from collections.abc import Sequence
from typing import Any

import pytest

from elastic.agreement import charter as room
from elastic.agreement.charter import AMENDMENTS, PAGE, Charter, UnknownTermsError
from elastic.agreement.manifests import check_manifest, draft, genesis
from elastic.agreement.simplex import quorum
from elastic.agreement.votes import Vote, VoteKind
from elastic.errors import MalformedError
from elastic.exchange.memory import MemoryNetwork
from elastic.messages import (
    GENESIS,
    Amendment,
    BlobRef,
    Finality,
    Manifest,
    RoundIndex,
    Seconds,
    Terms,
    View,
    digest_of,
)
from elastic.schedule.clock import ManualClock
from elastic.wire.signing import Identity

KEYS = sorted((Identity.generate() for _ in range(5)), key=lambda key: key.peer)
ANCHOR = digest_of(b"anchor")
FIRST = Terms(validators=(KEYS[0].peer,), incentive='{"name":"uniform"}')


def to(*keys: Identity, incentive: str | None = None) -> Amendment:
    return Amendment(validators=tuple(sorted(key.peer for key in keys)) or None, incentive=incentive)


def final(text: Manifest, proposer: Identity, voters: Sequence[Identity]) -> Manifest:
    """With the votes of these."""
    manifest = proposer.sign(text)
    votes = [
        key.sign(
            Vote(
                run="demo", round=manifest.round, view=View(0), kind=VoteKind.FINALIZE, manifest=manifest.digest(),
                peer=key.peer,
            )
        )
        for key in voters
    ]  # fmt: skip
    signatures = {vote.peer: vote.signature for vote in votes}
    return manifest.model_copy(update={"finality": Finality(view=View(0), signatures=signatures)})


def run_of(*amendments: Amendment | None) -> list[Manifest]:
    """A chain in which each round amends the terms, or not; decided by whoever may."""
    deciding: Sequence[Identity] = KEYS[:1]
    chain = [final(genesis("demo", ANCHOR, [KEYS[0].peer], KEYS[0].peer), KEYS[0], deciding)]
    for amendment in amendments:
        text = draft(chain[-1], ANCHOR, [], [KEYS[0].peer], deciding[0].peer)
        text = text.model_copy(update={"amendment": amendment})
        chain.append(final(text, deciding[0], deciding[: quorum(len(deciding))]))
        if amendment is not None and amendment.validators is not None:
            deciding = [key for key in KEYS if key.peer in amendment.validators]
    return chain


class House:
    """A network on which some have posted amendments."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.network = MemoryNetwork(self.clock.now, 1000.0, self.clock.sleep)
        self.reader = self.network.join(KEYS[4].peer, "demo")

    async def told(self, key: Identity, chain: Sequence[Manifest]) -> None:
        """One who knows them says so."""
        await Charter("demo", FIRST, chain).tell(self.network.join(key.peer, "demo"), self.clock)

    async def posted(self, key: Identity, *lines: bytes, page: int = 0) -> None:
        """One posts whatever it likes."""
        exchange = self.network.join(key.peer, "demo")
        body = b"\n".join(lines)
        reference = BlobRef(digest=await exchange.provide(body), size_bytes=len(body))
        await exchange.post(AMENDMENTS, RoundIndex(page), reference.canonical())


def test_terms_hold_from_the_round_after_the_manifest_that_brought_them() -> None:
    chain = run_of(None, to(KEYS[1], KEYS[2]), None, to(incentive="{}"), None)
    terms = Charter("demo", FIRST, chain)
    assert terms.of(GENESIS) == terms.of(RoundIndex(2)) == FIRST
    assert terms.of(RoundIndex(3)).validators == to(KEYS[1], KEYS[2]).validators
    assert terms.of(RoundIndex(4)).incentive == FIRST.incentive
    assert terms.of(RoundIndex(5)) == terms.newest()
    assert terms.newest() == Terms(validators=terms.of(RoundIndex(3)).validators, incentive="{}")
    assert [each.round for each in terms.amendments()] == [2, 4]
    assert all(terms.behind(each) == terms.of(each.round) for each in chain)


def test_a_manifest_under_terms_that_were_changed_before_it_is_refused() -> None:
    # given a run that was handed over in round 1
    handed, stolen = run_of(to(KEYS[1])), run_of(None, None)
    terms = Charter("demo", FIRST, handed)
    # when the first validator goes on all the same
    with pytest.raises(MalformedError, match="changed before it"):
        terms.behind(stolen[2])
    # and of terms that nobody here has heard of nothing can be said
    with pytest.raises(UnknownTermsError):
        Charter("demo", FIRST).behind(run_of(to(KEYS[1]), None)[2])


def test_a_chain_names_what_amended_it() -> None:
    chain = run_of(to(KEYS[1]), None)
    forgetful = KEYS[1].sign(chain[2].model_copy(update={"amended": GENESIS}))
    with pytest.raises(MalformedError, match="terms that the round before left"):
        check_manifest(forgetful, run="demo", validators=[KEYS[1].peer], previous=chain[1])
    ahead = KEYS[1].sign(chain[2].model_copy(update={"amended": chain[2].round}))
    with pytest.raises(MalformedError, match="amended by a later round"):
        check_manifest(ahead, run="demo", validators=[KEYS[1].peer])
    unsorted = tuple(reversed(to(KEYS[1], KEYS[2]).validators or ()))
    bad = KEYS[0].sign(chain[1].model_copy(update={"amendment": Amendment(validators=unsorted, incentive=None)}))
    with pytest.raises(MalformedError, match="out of PeerId order"):
        check_manifest(bad, run="demo", validators=[KEYS[0].peer], previous=chain[0])


async def test_who_knows_the_run_file_alone_learns_every_hand_over() -> None:
    house, chain = House(), run_of(to(KEYS[1], KEYS[2]), None, to(KEYS[2], KEYS[3]), to(KEYS[3]))
    await house.told(KEYS[3], chain)
    terms = Charter("demo", FIRST)
    assert await terms.learn(house.reader)
    assert terms.newest().validators == (KEYS[3].peer,)
    assert not await terms.learn(house.reader), "there is nothing new"


async def test_more_amendments_than_fit_a_blob_are_read_page_by_page() -> None:
    house = House()
    chain = run_of(*(to(KEYS[number % 3]) for number in range(2 * PAGE + 5)))
    await house.told(KEYS[1], chain)
    terms = Charter("demo", FIRST)
    assert await terms.learn(house.reader)
    assert len(terms.amendments()) == 2 * PAGE + 5


@pytest.mark.parametrize(
    "lie", ["forged", "too few votes", "by those who follow", "gap", "garbage", "not final", "no blob"]
)
async def test_what_does_not_prove_itself_is_nobodys_and_hides_nothing(lie: str) -> None:
    # given one who knows, and liars whose records come first
    house, chain = House(), run_of(to(KEYS[1], KEYS[2], KEYS[3]), to(KEYS[2], KEYS[3]))
    mallory = min(KEYS[1:4], key=lambda key: key.peer)
    hand_over = KEYS[0].sign(
        draft(chain[0], ANCHOR, [], [], KEYS[0].peer).model_copy(update={"amendment": to(mallory)})
    )
    line = {
        "forged": final(hand_over.model_copy(update={"proposer": mallory.peer}), mallory, [mallory]).canonical(),
        "too few votes": final(chain[2].model_copy(update={"amendment": to(mallory)}), KEYS[1], KEYS[1:2]).canonical(),
        "by those who follow": final(hand_over, KEYS[0], [mallory]).canonical(),
        "gap": chain[2].canonical(),
        "garbage": b"\xff{",
        "not final": hand_over.canonical(),
        "no blob": b"",
    }[lie]
    if lie == "no blob":
        reference = BlobRef(digest=digest_of(b"nowhere"), size_bytes=100)
        await house.network.join(mallory.peer, "demo").post(AMENDMENTS, GENESIS, reference.canonical())
    else:
        await house.posted(mallory, line)
    await house.told(KEYS[0], chain)
    # when
    terms = Charter("demo", FIRST)
    await terms.learn(house.reader)
    # then
    assert [each.digest() for each in terms.amendments()] == [each.digest() for each in chain[1:]]


async def test_a_crowd_of_strangers_is_looked_at_a_few_at_a_time() -> None:
    house, asked = House(), []
    for _ in range(3 * room.WITNESSES):
        await house.posted(Identity.generate(), b"garbage")
    honest = house.reader.fetch

    async def fetch(*args: Any) -> bytes:
        asked.append(args)
        return await honest(*args)

    house.reader.fetch = fetch  # type: ignore[method-assign]
    terms = Charter("demo", FIRST)
    await terms.learn(house.reader)
    assert len(asked) == room.WITNESSES
    for _ in range(5):
        await terms.learn(house.reader)
    assert len(asked) == 3 * room.WITNESSES, "nothing is read twice"


@pytest.mark.parametrize("lie", ["garbage", "nowhere"])
async def test_names_that_cost_nothing_cannot_keep_those_who_know_from_being_read(lie: str) -> None:
    # given more liars than are read at a time, all before the honest one, who post anew whenever they are read
    house, chain = House(), run_of(to(KEYS[1]))
    crowd = sorted((Identity.generate() for _ in range(40)), key=lambda key: key.peer)
    liars, honest = crowd[: room.WITNESSES + 1], crowd[-1]
    await house.told(honest, chain)
    terms = Charter("demo", FIRST)
    for attempt in range(4):
        for liar in liars:
            if lie == "garbage":
                await house.posted(liar, b"garbage %d" % attempt)
            else:
                reference = BlobRef(digest=digest_of(b"nowhere"), size_bytes=100 + attempt)
                await house.network.join(liar.peer, "demo").post(AMENDMENTS, GENESIS, reference.canonical())
        # when
        await terms.learn(house.reader)
    # then
    assert len(terms.amendments()) == 1


async def test_amendments_are_told_again_while_the_run_goes_on() -> None:
    house, chain = House(), run_of(to(KEYS[1]))
    terms, exchange = Charter("demo", FIRST, chain), house.network.join(KEYS[1].peer, "demo")
    posts: list[Any] = []

    async def post(*args: Any) -> None:
        posts.append(args)

    exchange.post = post  # type: ignore[method-assign]
    await terms.tell(exchange, house.clock)
    await terms.tell(exchange, house.clock)
    assert len(posts) == 1
    await house.clock.sleep(Seconds(room.TELL_AGAIN))
    await terms.tell(exchange, house.clock)
    assert len(posts) == 2
