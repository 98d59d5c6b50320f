"""Bugs planted into what a whole swarm lives by, each of which the simulation must find.

`python -m tests.sim.swarm_bugs` tells for each the seeds that it takes.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from elastic import apply, deliberate, life, propose
from elastic import round as story
from elastic.agreement import manifests, quorum, seat, simplex, talk
from elastic.agreement.charter import Charter
from elastic.agreement.votes import Ballot
from elastic.deliberate import Deliberation
from elastic.errors import FetchError
from elastic.exchange import gather
from elastic.messages import Digest, Manifest, PeerId, RoundIndex, Seconds, Terms
from elastic.peer import Peer
from elastic.sim import node
from elastic.sim.network import SimExchange
from elastic.sim.world import simulate
from elastic.state.chain import Chain
from elastic.wire import tree

Bug = Callable[[], Any]
BUGS: dict[str, Bug] = {}


def bug(name: str) -> Callable[[Bug], Bug]:
    def keep(plant: Bug) -> Bug:
        BUGS[name] = plant
        return plant

    return keep


@contextmanager
def all_of(*patches: Any) -> Iterator[None]:
    if not patches:
        yield
        return
    with patches[0], all_of(*patches[1:]):
        yield


async def nothing(*_: Any, **__: Any) -> None:
    return None


async def yes(*_: Any, **__: Any) -> bool:
    return True


@bug("a quorum of half")
def _() -> Any:
    half = lambda n: max(1, n // 2)  # noqa: E731
    return all_of(patch.object(simplex, "quorum", half), patch.object(manifests, "quorum", half))


@bug("a quorum of all")
def _() -> Any:
    everyone = lambda n: n  # noqa: E731
    return all_of(patch.object(simplex, "quorum", everyone), patch.object(manifests, "quorum", everyone))


@bug("a validator forgets what it said")
def _() -> Any:
    return all_of(
        patch.object(node, "read_if_there", lambda path: None), patch.object(quorum.Quorum, "_heard_of_us", nothing)
    )


@bug("votes of anyone in anyone's name")
def _() -> Any:
    return patch.object(seat.Seat, "_is_genuine", lambda self, said: said.signer in self.validators)


@bug("final manifests are taken at their word")
def _() -> Any:
    return patch.object(quorum, "check_final", lambda manifest, validators: None)


@bug("whatever is proposed is signed")
def _() -> Any:
    return patch.object(Deliberation, "accepts", yes)


@bug("nobody looks at others' notes")
def _() -> Any:
    return patch.object(Deliberation, "_compare_notes", nothing)


@bug("the next roster must be known to the last peer")
def _() -> Any:
    def strict(roster: Any, ours: Any, live: Any) -> str | None:
        return "strangers" if set(roster) - set(live) else None

    return all_of(patch.object(life, "against_roster", strict), patch("elastic.propose.against_roster", strict))


@bug("an outer step on what could be had")
def _() -> Any:
    honest = apply.apply_manifest

    async def on_a_subset(peer: Any, manifest: Manifest, payloads: Mapping[Digest, bytes]) -> None:
        kept = tuple(entry for entry in manifest.counted if entry.payload in payloads)
        await honest(peer, manifest.model_copy(update={"counted": kept}), payloads)

    def commit(plan: Any, manifest: Any, missing: Any) -> Any:
        return story_decide(plan, manifest, [])

    story_decide = story.decide_commit
    return all_of(
        patch.object(story, "decide_commit", commit),
        patch.object(story, "apply_manifest", on_a_subset),
        patch.object(apply, "apply_manifest", on_a_subset),
    )


@bug("catching up jumps to the newest manifest")
def _() -> Any:
    async def newest(peer: Any, head: Manifest) -> Manifest | None:
        return head

    return patch.object(apply, "_next_manifest", newest)


@bug("wrong bytes are taken")
def _() -> Any:
    return all_of(
        patch.object(tree.Table, "fits", lambda self, index, chunk: True),
        patch("elastic.verify.checks._check_bytes", lambda header, payload, decode: None),
    )


@bug("an open contribution is made again after a restart")
def _() -> Any:
    honest = node.LedgerTrainer.__init__

    def forgetful(self: Any, *args: Any) -> None:
        honest(self, *args)
        self.pending = None

    return patch.object(node.LedgerTrainer, "__init__", forgetful)


@bug("who missed a round keeps what was counted")
def _() -> Any:
    honest = node.LedgerTrainer._settle

    def never(self: Any, manifest: Manifest) -> None:
        if self.pending is not None:
            self.residual += self.pending
            self.pending = None

    assert honest
    return patch.object(node.LedgerTrainer, "_settle", never)


@bug("everyone is waited for without end")
def _() -> Any:
    honest = gather.Until

    def endless(deadline: float, decided: Any = gather.never) -> gather.Until:
        return honest(1e9, gather.never)  # type: ignore[arg-type]

    return all_of(patch.object(story, "Until", endless), patch.object(deliberate, "Until", endless))


@bug("nobody's patience ends")
def _() -> Any:
    return patch.object(seat.Seat, "time_out", lambda self: None)


@bug("drafts are kept to oneself")
def _() -> Any:
    honest = talk.Talk._post

    async def post(self: Any, kind: str, body: bytes) -> None:
        if kind != talk.DRAFT:
            await honest(self, kind, body)

    return patch.object(talk.Talk, "_post", post)


@bug("a ballot is posted once")
def _() -> Any:
    honest = talk.Talk._post

    async def post(self: Any, kind: str, body: bytes) -> None:
        if kind not in self._said:
            await honest(self, kind, body)

    return patch.object(talk.Talk, "_post", post)


@bug("others are heard once")
def _() -> Any:
    honest = talk.Talk._hear_all

    def hear(self: Any, records: Mapping[PeerId, bytes]) -> None:
        honest(self, {author: body for author, body in records.items() if author not in self._heard})

    return patch.object(talk.Talk, "_hear_all", hear)


@bug("a ballot is waited for as long as it takes")
def _() -> Any:
    honest = talk.Talk.listen

    async def listen(self: Any, accepts: Any) -> None:
        await honest(self, accepts)
        await self._ballots.wait(self.seat.validators, Seconds(1e9))

    return patch.object(talk.Talk, "listen", listen)


@bug("what is final is told nobody")
def _() -> Any:
    return patch.object(quorum.Quorum, "_tell", nothing)


@bug("the votes that led here are not passed on")
def _() -> Any:
    def ballot(self: Any) -> Ballot:
        return Ballot.of(self._run, self.round, self._votes, self._proposals)

    return patch.object(seat.Seat, "ballot", ballot)


@bug("nobody serves what it fetched")
def _() -> Any:
    honest = SimExchange.provide

    async def provide(self: Any, blob: bytes) -> Digest:
        return await honest(self, blob)

    async def fetch(self: Any, digest: Digest, size_bytes: int, holders: Any) -> bytes:
        if holders and self.held(digest) is None:
            return await SimExchange.__base__.fetch(self, digest, size_bytes, holders[:1])  # type: ignore[attr-defined]
        raise FetchError("nobody") if self.held(digest) is None else FetchError("hidden")

    assert provide
    return patch.object(SimExchange, "fetch", fetch)


@bug("a ballot is on disk one step late")
def _() -> Any:
    def keep(self: Any, ballot: Ballot) -> None:
        if self._memory is not None:
            self._save(self._memory.canonical())
        self._memory = ballot

    return patch.object(quorum.Quorum, "_keep", keep)


@bug("the texts of what was voted for are not kept")
def _() -> Any:
    honest = quorum.Quorum._keep

    def keep(self: Any, ballot: Ballot) -> None:
        honest(self, ballot.model_copy(update={"texts": ()}))

    return patch.object(quorum.Quorum, "_keep", keep)


@bug("a peer that comes back does not say what was final")
def _() -> Any:
    return all_of(patch.object(life.Life, "_repeat_last_word", nothing), patch.object(quorum.Quorum, "repeat", nothing))


@bug("a manifest on disk is taken for applied")
def _() -> Any:
    def holds(self: Peer) -> RoundIndex:
        head = self.chain.head()
        return self.state.round if head is None else RoundIndex(head.round + 1)

    return patch.object(Peer, "holds", holds)


@bug("what counts need not be there")
def _() -> Any:
    return patch.object(propose, "_against_counted", lambda peer, seen, manifest: None)


@bug("a manifest may apply to any anchor")
def _() -> Any:
    honest = propose.objection

    def objection(peer: Any, plan: Any, seen: Any, cards: Any, manifest: Manifest, *more: Any) -> str | None:
        fitting = manifest.model_copy(update={"previous": plan.previous, "anchor": plan.anchor})
        return honest(peer, plan, seen, cards, fitting, *more)

    return patch.object(deliberate, "objection", objection)


@bug("a copy counts beside its original")
def _() -> Any:
    return patch("elastic.seen.mark_copies", lambda verdicts, headers, seen: dict(verdicts))


@bug("work that counted under a thief's name is offered again")
def _() -> Any:
    honest = node.LedgerTrainer._settle

    def settle(self: Any, manifest: Manifest) -> None:
        mine = tuple(entry for entry in manifest.counted if entry.peer == self._peer)
        honest(self, manifest.model_copy(update={"counted": mine}))

    return patch.object(node.LedgerTrainer, "_settle", settle)


@bug("an anchor is taken without asking what counted")
def _() -> Any:
    honest = node.LedgerTrainer.load

    async def load(self: Any, state: bytes, round_: RoundIndex, settled: Manifest | None = None) -> Digest:
        return await honest(self, state, round_)

    return patch.object(node.LedgerTrainer, "load", load)


@bug("who decided once decides for ever")
def _() -> Any:
    return patch.object(Charter, "admit", lambda self, manifest: None)


@bug("a change of who decides counts in its own round")
def _() -> Any:
    def of(self: Any, round_: RoundIndex) -> Terms:
        return self._terms[max(each for each in self._terms if each <= round_)]

    return patch.object(Charter, "of", of)


@bug("whatever change is proposed is signed")
def _() -> Any:
    honest = propose.objection

    def objection(*args: Any) -> str | None:
        *others, manifest, _, patience = args
        return honest(*others, manifest, manifest.amendment, patience)

    return patch.object(deliberate, "objection", objection)


@bug("who decides now is forgotten at a restart")
def _() -> Any:
    return patch.object(Chain, "amendments", lambda self: [])


def first_seed(name: str, seeds: range) -> int | None:
    """The first seed whose schedule goes wrong with that bug."""
    for seed in seeds:
        with BUGS[name]():
            if simulate(seed).violation:
                return seed
    return None


def main() -> None:
    """A line per bug, as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all if not given")
    parser.add_argument("--seeds", type=int, default=100)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    chosen = [name for name in BUGS if not options.names or any(part in name for part in options.names)]
    found = 0
    for name in chosen:
        seed = first_seed(name, range(options.seeds))
        found += seed is not None
        sys.stdout.write(f"{'not found' if seed is None else f'seed {seed}':12} {name}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{found} of {len(chosen)} found within {options.seeds} seeds\n")


if __name__ == "__main__":
    main()
