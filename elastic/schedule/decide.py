"""Decisions as small frozen values: pure functions that the loops execute."""

from collections.abc import Collection
from dataclasses import dataclass

from elastic.messages import Digest, Manifest, RoundIndex, RoundPlan


@dataclass(frozen=True, slots=True)
class Train:
    """Hold the right anchor: take part in the round after the head."""

    head: Manifest


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Others are ahead, or we hold another anchor: get to the head first."""

    head: Manifest


@dataclass(frozen=True, slots=True)
class Found:
    """No manifest exists anywhere and we are a validator: start the run once enough peers are there."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done yet."""

    because: str


@dataclass(frozen=True, slots=True)
class Leave:
    """The run is over."""

    because: str


Next = Train | CatchUp | Found | Wait | Leave


def decide_next(*, holds: RoundIndex, head: Manifest | None, rounds: int, validator: bool) -> Next:
    """What a peer does next.

    Args:
        holds: the round whose anchor it holds.
        head: the newest final manifest it knows of, from its disk or from the swarm.
        rounds: length of the run.
        validator: whether it may sign the genesis.
    """
    if holds > (head.round + 1 if head else 0):
        return Wait(f"we hold the anchor of round {holds}, but nobody knows the manifest that led to it")
    if head is None:
        return Found() if validator else Wait("the run has not started: no manifest from its validators yet")
    if holds <= head.round:
        return CatchUp(head)
    if head.round >= rounds:
        return Leave(f"the run is complete after {rounds} rounds")
    return Train(head)


@dataclass(frozen=True, slots=True)
class Commit:
    """Apply the manifest."""

    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Skip:
    """Apply nothing now; the residual keeps our work."""

    because: str


def decide_commit(plan: RoundPlan, manifest: Manifest | None, missing: Collection[Digest]) -> Commit | Skip:
    """Whether the outer step can be taken. Never on a subset: every counted payload, or none."""
    if manifest is None:
        return Skip("no manifest for this round yet: its validators cannot be heard")
    if manifest.anchor != plan.anchor or manifest.previous != plan.previous:
        return Skip("the manifest applies to another anchor than ours")
    if missing:
        return Skip(f"{len(missing)} of {len(manifest.counted)} payloads that count could not be fetched yet")
    return Commit(manifest)
