"""One cell of the table: a kind of bad peer, a defence, a seed; and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import mean, median_high

from elastic.bench.attack.conduct import Conduct
from elastic.bench.attack.member import Member, opinions
from elastic.bench.attack.swarm import DEFENCES, Setting, Swarm, folder
from elastic.bench.attack.zoo import ABSENT, CONTROL, ZOO
from elastic.messages import Manifest, PeerId, RoundIndex
from elastic.sim.loop import run

HELD_OUT_SEQUENCES = 512


@dataclass(frozen=True, slots=True)
class Cell:
    """What is measured."""

    kind: str
    defence: str
    seed: int
    setting: Setting

    @property
    def conduct(self) -> type[Conduct] | None:
        """Of the bad peers; None: there are none."""
        return {**ZOO, CONTROL: Conduct, ABSENT: None}[self.kind]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a cell, in plain numbers."""

    kind: str
    defence: str
    seed: int
    peers: int
    rounds: int
    bad: int
    detected: int
    """Bad peers that are shut out at the end, or never counted in the last quarter of the rounds."""
    ejected_after: list[int]
    """For each of those: the last round that counted it; 0 if none ever did."""
    honest: int
    slashed: int
    """Honest peers that were shut out at any time."""
    gets: float
    """Part of all shares that bad peers got, mean over the rounds; with a chain: of its weights after the last one."""
    held_out: float
    """Loss of the last anchor, nats per token."""
    validator_cost: float
    """CPU time of a validator's assessments, as a part of that of its inner steps and compression."""
    round_seconds: float
    """Mean simulated time of a round."""


def measure(cell: Cell) -> Outcome:
    """Run the swarm of that cell to its end; the same cell gives the same outcome, but for the cost."""
    with folder() as place:
        swarm = Swarm(cell.setting, DEFENCES[cell.defence], cell.conduct, cell.seed, place)
        run(swarm.live)
        return _outcome(cell, swarm)


def _outcome(cell: Cell, swarm: Swarm) -> Outcome:
    bad, honest = swarm.of(bad=True), swarm.of(bad=False)
    judge = next(member for member in honest if member.id in swarm.shared.agreement.validators)
    rounds = cell.setting.rounds
    chain = [manifest for r in range(1, rounds + 1) if (manifest := judge.chain.get(RoundIndex(r))) is not None]
    shut = shut_out(swarm.members, rounds)
    ever = frozenset().union(*shut.values())
    now = shut.get(rounds - 1, frozenset())  # what was thought after the last round nobody told any more
    last = {member.id: last_counted(chain, member.id) for member in bad}
    gone = [peer for peer in last if peer in now or last[peer] <= 0.75 * rounds]
    deciding = [member for member in honest if member.id in swarm.shared.agreement.validators]
    worked = sum(member.trainer.work_seconds for member in deciding)
    return Outcome(
        kind=cell.kind, defence=cell.defence, seed=cell.seed, peers=cell.setting.peers, rounds=rounds, bad=len(bad),
        detected=len(gone), ejected_after=sorted(last[peer] for peer in gone),
        honest=len(honest), slashed=sum(member.id in ever for member in honest),
        gets=_gets({member.id for member in bad}, chain, [member.books.weights for member in deciding]),
        held_out=judge.session.evaluate(HELD_OUT_SEQUENCES),
        validator_cost=sum(member.trainer.assess_seconds for member in deciding) / max(worked, 1e-9),
        round_seconds=sum(report.seconds["total"] for report in judge.reports) / max(1, len(judge.reports)),
    )  # fmt: skip


def _gets(bad: Set[PeerId], chain: Sequence[Manifest], books: Sequence[Mapping[PeerId, float]]) -> float:
    """Part that those peers got: of the weights that validators would have set, or of the shares if there are none."""
    paid = [weights for weights in books if sum(weights.values()) > 0] or [
        {entry.peer: entry.share for entry in manifest.counted} for manifest in chain if manifest.counted
    ]
    parts = [sum(each.get(peer, 0.0) for peer in bad) / sum(each.values()) for each in paid]
    return mean(parts) if parts else 0.0


def last_counted(chain: Sequence[Manifest], peer: PeerId) -> int:
    """The last round in which a contribution of this peer counted; 0: none."""
    return max((manifest.round for manifest in chain if manifest.counts(peer)), default=0)


def shut_out(members: Sequence[Member], rounds: int) -> Mapping[int, frozenset[PeerId]]:
    """Round → whom more than half of the validators shut out after it, as they testified."""
    found = {}
    for round_ in range(1, rounds + 1):
        said = opinions(members, RoundIndex(round_))
        named = {peer for scores in said for peer in scores}
        found[round_] = frozenset(peer for peer in named if median_high([scores.get(peer, 0.0) for scores in said]) < 0)
    return found
