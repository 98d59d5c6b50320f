"""From a run file and its `[plan]` to what a round takes: how long, how many bytes, what it costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from elastic.config import RunConfig, Shared
from elastic.plan.describe import TOPOLOGIES, PeerGroup, Plan, described
from elastic.plan.link import Exchange, Line, Transfer, fetch_seconds
from elastic.plan.memory import Load, Room, disk_room, gpu_room, host_room
from elastic.plan.payload import payload_bytes
from elastic.plan.shape import Sizes, flops_per_token, sizes_of, tensors_of
from elastic.plan.work import Phase, after, before, train_seconds, written
from elastic.schedule.plan import SLACK_SECONDS, TRAIN_PART

DAY = 86_400.0
OVERLAPPED = ("exchange", "commit and agree")
"""Phases that would run beside inner steps."""


@dataclass(frozen=True, slots=True)
class Case:
    """A run and who is thought to take part."""

    shared: Shared
    plan: Plan
    sizes: Sizes

    @classmethod
    def of(cls, config: RunConfig) -> "Case":
        """What a run file says.

        Raises:
            ConfigError: a wrong value in [plan], in the model's settings or in the reducer's.
        """
        case = cls(config.shared, described(config), sizes_of(config.shared.model))
        _ = case.payload
        return case

    def with_plan(self, **changes: object) -> "Case":
        """The same with other assumptions."""
        return replace(self, plan=self.plan.model_copy(update=changes))

    def with_groups(self, **changes: object) -> "Case":
        """The same with other peers."""
        return self.with_plan(peers=tuple(group.model_copy(update=changes) for group in self.plan.peers))

    @property
    def payload(self) -> float:
        """Bytes of a payload."""
        return self.plan.payload_bytes or payload_bytes(self.shared.reducer, tensors_of(self.sizes))

    @property
    def peers(self) -> int:
        """Of all groups."""
        return sum(group.count for group in self.plan.peers)

    @property
    def makers(self) -> int:
        """Peers that contribute in a round."""
        return min(self.peers, self.shared.round.max_peers)

    @property
    def load(self) -> Load:
        """What every peer works with."""
        inner, nesterov = self.shared.inner, bool(self.shared.outer.nesterov)
        return Load(
            self.sizes, inner.sequence_length, inner.batch_size, self.payload, self.makers, nesterov,
            muon=inner.optimizer == "muon", rounds=self.shared.rounds,
        )  # fmt: skip

    @property
    def step_tokens(self) -> int:
        """Of one inner step of one peer."""
        return self.shared.inner.batch_size * self.shared.inner.sequence_length

    def lines(self) -> list[Line]:
        """Of all groups."""
        return [Line.of(g.count, g.up_mbps, g.down_mbps, g.rtt_ms) for g in self.plan.peers]


@dataclass(frozen=True, slots=True)
class Share:
    """What a group of equal peers does in a round."""

    group: PeerGroup
    rooms: tuple[Room, ...]
    """GPU, memory, disk."""
    whole_seconds: float
    """That all inner steps of the run file would take."""
    train_seconds: float
    """That it trains, before the run file or the others' pace stops it."""
    steps: int
    phases: tuple[Phase, ...]
    """From the inner steps to the offered payload."""

    @property
    def ready(self) -> float:
        """Seconds from the beginning of the round until its payload is offered."""
        return sum(phase.seconds for phase in self.phases)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a round of a case takes."""

    case: Case
    shares: tuple[Share, ...]
    transfers: dict[str, Transfer]
    way: str
    """Of the transfers, the one that is used."""
    phases: tuple[Phase, ...]
    """Of the round, after one another, as the slowest contributor goes through them."""
    join_seconds: float
    """To fetch an anchor from all peers, and to write it."""

    @property
    def transfer(self) -> Transfer:
        """The one that is used."""
        return self.transfers[self.way]

    @property
    def round_seconds(self) -> float:
        """From one round's beginning to the next one's."""
        hidden = sum(phase.seconds for phase in self.phases if phase.name in OVERLAPPED)
        total = sum(phase.seconds for phase in self.phases)
        return total - min(hidden, self.train_seconds) if self.case.plan.overlap else total

    @property
    def train_seconds(self) -> float:
        """Of the round, with inner steps."""
        return self.phases[0].seconds

    @property
    def utilisation(self) -> float:
        """Part of a round with inner steps on the slowest contributor's GPUs, as the Covenant report counts it."""
        return self.train_seconds / self.round_seconds

    @property
    def tokens(self) -> float:
        """Of a round, of all contributors."""
        steps = sum(share.steps * share.group.count for share in self.shares) / self.case.peers
        return steps * self.case.makers * self.case.step_tokens

    @property
    def tokens_per_day(self) -> float:
        """Of all contributors."""
        return self.tokens / self.round_seconds * DAY

    @property
    def mfu(self) -> float:
        """Part of all GPUs' peak, over the whole round, those of peers that sit out included."""
        useful = self.tokens * flops_per_token(self.case.sizes, self.case.shared.inner.sequence_length)
        peak = sum(g.count * g.gpus * g.device.flops for g in self.case.plan.peers)
        return useful / (peak * self.round_seconds)

    @property
    def usd_per_day(self) -> float:
        """Of all peers' machines, and of what buckets give out."""
        machines = 24 * sum(group.count * group.price for group in self.case.plan.peers)
        return machines + self.transfer.egress / 1e9 * self.case.plan.usd_per_gb * DAY / self.round_seconds

    @property
    def days(self) -> float:
        """Of all rounds of the run file."""
        return self.case.shared.rounds * self.round_seconds / DAY

    @property
    def bound(self) -> float:
        """Seconds after which a round waits for nobody, whatever its pace."""
        return self.case.shared.round.train_seconds + self.case.shared.round.gather_seconds

    @property
    def arrival(self) -> float:
        """Seconds from the beginning of a round until the last payload is everywhere."""
        return max(share.ready for share in self.shares) + self.transfer.seconds

    @property
    def in_time(self) -> bool:
        """Whether it is there before a round waits for nobody any more."""
        return self.arrival <= self.bound


def estimate(case: Case) -> Estimate:
    """What a round takes."""
    transfers, way = _transfers(case)
    shares = _shares(case, transfers[way].seconds)
    slowest = max(shares, key=lambda share: share.ready)
    exchange = transfers[way]
    phases = [
        *slowest.phases,
        Phase("exchange", exchange.seconds, f"{way}: {exchange.limit}"),
        Phase("commit and agree", case.plan.talk_seconds, "measured on a small swarm"),
        *max(
            (after(case.load, group, exchange.seconds) for group in case.plan.peers),
            key=lambda found: sum(phase.seconds for phase in found),
        ),
    ]
    state = 4.0 * case.sizes.num_params() * (2 if case.shared.outer.nesterov else 1)
    lines, group = case.lines(), case.plan.peers[0]
    join = fetch_seconds(state, lines[0], lines) + written(state, group)
    return Estimate(case, tuple(shares), transfers, way, tuple(phases), join)


def _transfers(case: Case) -> tuple[dict[str, Transfer], str]:
    exchange = Exchange(case.lines(), case.makers, case.payload)
    if case.shared.reducer.name == "average":
        return {"all-reduce": exchange.all_reduce()}, "all-reduce"
    return {name: getattr(exchange, name)() for name in TOPOLOGIES}, case.plan.topology


def _shares(case: Case, exchange_seconds: float) -> list[Share]:
    """What each group has time for: the faster half's pace sets the deadline, as in `elastic.schedule.plan`."""
    rules, load = case.shared.round, case.load
    bound = rules.train_seconds + rules.gather_seconds
    whole = [train_seconds(load, g, case.shared.inner.steps * case.step_tokens) for g in case.plan.peers]
    until = [sum(phase.seconds for phase in before(load, case.plan, g)) for g in case.plan.peers]
    arrivals = [
        min(took, rules.train_seconds) + done + exchange_seconds for took, done in zip(whole, until, strict=True)
    ]
    pace = _faster_half(arrivals, case.plan.peers)
    deadline = min(bound, rules.deadline_factor * pace + SLACK_SECONDS)
    limit = min(rules.train_seconds, TRAIN_PART * deadline)
    return [_share(case, group, took, limit) for group, took in zip(case.plan.peers, whole, strict=True)]


def _faster_half(arrivals: Sequence[float], groups: Sequence[PeerGroup]) -> float:
    """When half of the peers have come."""
    came, half = 0, (sum(group.count for group in groups) + 1) // 2
    for seconds, group in sorted(zip(arrivals, groups, strict=True), key=lambda pair: pair[0]):
        came += group.count
        if came >= half:
            return seconds
    raise AssertionError("a plan has peers")


def _share(case: Case, group: PeerGroup, whole: float, limit: float) -> Share:
    """A peer looks at the clock between two steps, and does one at least."""
    wanted, load = case.shared.inner.steps, case.load
    step = whole / wanted
    steps = wanted if whole <= limit else min(wanted, max(1, int(limit / step) + 1))
    inner = Phase("inner steps", steps * step, f"{steps} steps, {group.used:.0%} of {group.gpus} × {group.gpu}")
    rooms = (gpu_room(load, case.plan, group), host_room(load, case.plan, group), disk_room(load, case.plan, group))
    return Share(group, rooms, whole, steps * step, steps, (inner, *before(load, case.plan, group)))
