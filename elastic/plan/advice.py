"""What stands in the way of a plan, and what would change it: each change is tried, the best of them first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from elastic.plan.describe import TOPOLOGIES
from elastic.plan.estimate import OVERLAPPED, Case, Estimate, estimate
from elastic.plan.memory import Room, gpu_room

TARGET = 0.945
"""Utilisation that the Covenant-72B report claims, and that we aim at."""
WORTH = 0.005
"""Utilisation that a change must add to be named."""
MOST_STEPS = 5
MOST_GPUS = 4096
MOST_TIMES = 1e4
"""Faster than a line will be."""
FAST_MBPS = 1000.0
"""A line of fibre."""
FAST_DISK = 12.0
"""GB/s: two or three NVMe disks as one."""
UNEVEN, UNEVEN_FACTOR = 2.0, 1.5
"""Uplinks that differ so many times make a swarm so much slower than `Exchange.swarm`; measured at 4, see checked."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing done differently, and what the run is then."""

    what: str
    after: Estimate


def obstacles(found: Estimate) -> Iterator[str]:
    """Why this cannot work as it is."""
    case = found.case
    for share in found.shares:
        name = f"{share.group.gpus} × {share.group.gpu}"
        for room in share.rooms:
            if not room.fits:
                yield f"{name}: {_too_full(room)}; {_more_room(case, share.group.gpu, room)}"
        if share.steps < case.shared.inner.steps:
            yield (
                f"{name}: {share.steps} of {case.shared.inner.steps} inner steps in a round: all take "
                f"{share.whole_seconds:,.0f} s, and it is stopped after {share.train_seconds:,.0f} s "
                "(train_seconds, or the faster half's pace)"
            )
    if not found.in_time:
        yield (
            f"the last payload is everywhere {found.arrival:,.0f} s after a round's beginning, and nobody waits longer "
            f"than train_seconds + gather_seconds = {found.bound:,.0f} s: rounds would be void, or count few"
        )
    uplinks = [group.up_mbps for group in case.plan.peers]
    if found.way == "swarm" and max(uplinks) > UNEVEN * min(uplinks):
        yield (
            f"uplinks differ {max(uplinks) / min(uplinks):.0f} times: a swarm then takes about {UNEVEN_FACTOR:g} "
            "times as long as stands here (one measured run)"
        )
    if case.peers > case.makers:
        yield (
            f"{case.peers - case.makers:,} of {case.peers:,} peers sit out each round: max_peers = {case.makers}. They "
            "take every payload, too, and their price is in the cost"
        )


def _too_full(room: Room) -> str:
    return f"{room.used / 1e9:,.0f} GB do not fit into a {room.place} of {room.size_bytes / 1e9:,.0f} GB"


def _more_room(case: Case, gpu: str, room: Room) -> str:
    if room.place != "GPU":
        return f"it takes a {room.place} of {room.used / 1e9:,.0f} GB"
    plan, group = case.plan, next(group for group in case.plan.peers if group.gpu == gpu)
    least = plan.train.model_copy(update={"recompute": True, "micro_batch": 1, "precision": "bf16"})
    frugal = plan.model_copy(update={"train": least})
    if gpu_room(case.load, frugal, group).fits:
        return 'write recompute = true, micro_batch = 1, precision = "bf16" in [local.train]'
    gpus = group.gpus
    while gpus < MOST_GPUS:
        gpus *= 2
        if gpu_room(case.load, frugal, group.model_copy(update={"gpus": gpus})).fits:
            return f"{gpus} of them would do"
    return "no number of them is enough: what is not sharded is too large"


def limits(found: Estimate) -> Iterator[str]:
    """Where the time goes that is not training, the longest first; seconds and part of the round."""
    for phase in sorted(found.phases[1:], key=lambda phase: -phase.seconds):
        part = phase.seconds / found.round_seconds
        if part >= 0.01:
            hidden = ", beside inner steps" if found.case.plan.overlap and phase.name in OVERLAPPED else ""
            yield f"{phase.name}: {phase.seconds:,.0f} s, {part:.0%} of the round ({phase.how}{hidden})"


def line_needed(found: Estimate, target: float = TARGET) -> float | None:
    """How many times faster all lines must be for a utilisation, all else being equal; None: none is fast enough."""

    def reached(times: float) -> bool:
        groups = tuple(
            group.model_copy(update={"up_mbps": group.up_mbps * times, "down_mbps": group.down_mbps * times})
            for group in found.case.plan.peers
        )
        return estimate(found.case.with_plan(peers=groups)).utilisation >= target

    if not reached(MOST_TIMES):
        return None
    low, high = 0.0, MOST_TIMES
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def changes(found: Estimate) -> list[Change]:
    """What helps by itself, the best first. The training itself is touched by the last two kinds; their loss is to be
    measured."""
    tried = [
        Change(what, estimate(made)) for what, make in _CANDIDATES.items() if (made := make(found.case)) is not None
    ]
    worth = [each for each in tried if each.after.utilisation >= found.utilisation + WORTH]
    return sorted(worth, key=lambda each: -each.after.utilisation)


def path(found: Estimate) -> list[Change]:
    """One change after the other, each time the best, until the target; none that touches the training itself."""
    steps: list[Change] = []
    now = found
    while now.utilisation < TARGET and len(steps) < MOST_STEPS:
        better = [each for each in changes(now) if each.what not in _TOUCHES_TRAINING]
        if not better:
            break
        steps.append(better[0])
        now = better[0].after
    return steps


def _way(name: str) -> Callable[[Case], Case | None]:
    def change(case: Case) -> Case | None:
        usable = case.shared.reducer.name != "average" and case.plan.topology != name
        return case.with_plan(topology=name) if usable else None

    return change


def _fibre(case: Case) -> Case | None:
    groups = tuple(
        group.model_copy(update={key: max(FAST_MBPS, getattr(group, key)) for key in ("up_mbps", "down_mbps")})
        for group in case.plan.peers
    )
    return case.with_plan(peers=groups)


def _disks(case: Case) -> Case | None:
    groups = tuple(
        group.model_copy(update={"disk_gb_per_second": max(FAST_DISK, group.disk_gb_per_second)})
        for group in case.plan.peers
    )
    return case.with_plan(peers=groups)


def _overlap(case: Case) -> Case | None:
    return None if case.plan.overlap else case.with_plan(overlap=True)


def _fewer_entries(case: Case) -> Case | None:
    return case.with_plan(payload_bytes=case.payload / 2) if case.shared.reducer.name == "sparseloco" else None


def _longer(case: Case) -> Case:
    inner = case.shared.inner.model_copy(update={"steps": 2 * case.shared.inner.steps})
    rules = case.shared.round.model_copy(update={"train_seconds": 2 * case.shared.round.train_seconds})
    shared = case.shared.model_copy(update={"inner": inner, "round": rules})
    return Case(shared, case.plan, case.sizes)


_CANDIDATES: dict[str, Callable[[Case], Case | None]] = {
    **{f'topology = "{name}"': _way(name) for name in TOPOLOGIES},
    f"lines of {FAST_MBPS:,.0f}/{FAST_MBPS:,.0f} Mb/s": _fibre,
    f"disks of {FAST_DISK:g} GB/s": _disks,
    "overlap: train while payloads travel (not built yet)": _overlap,
    "half the entries in a payload (k)": _fewer_entries,
    "twice the inner steps and train_seconds (1,500 s at most today)": _longer,
}
_TOUCHES_TRAINING = tuple(_CANDIDATES)[-2:]
