"""How far these formulas can be trusted: our own measured runs, and the published ones of others, computed again.

Two kinds of rows: to `fitted` ones a constant of the model was set, so they agree by construction; `predicted` ones had
no part in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from elastic.plan.link import MBIT, Exchange, Line, Transfer, fetch_seconds
from elastic.plan.simulate import Life, play

FIGURES_UP_MBPS = 27.5
"""Of every peer of docs/exchange.md; a limit of ours on payload bytes, on loopback: no headers, no round trips."""
THIN = 4
"""Times thinner is the one thin uplink there."""
HOME = (110.0, 500.0, 40.0)
"""docs/churn.md: Mb/s up and down, ms."""
FREE = 1e15
SEEDS = 20


@dataclass(frozen=True, slots=True)
class Row:
    """One measured number beside the model's."""

    what: str
    unit: str
    measured: float
    computed: float
    page: str
    """Where it was measured."""
    fitted: bool = False

    @property
    def off(self) -> float:
        """Computed ÷ measured − 1."""
        return self.computed / self.measured - 1


def _figures(peers: int, makers: int, megabytes: float, thin: bool = False) -> Exchange:
    up = FIGURES_UP_MBPS * MBIT
    lines = [Line(peers - thin, up, FREE), *([Line(1, up / THIN, FREE)] if thin else [])]
    return Exchange(lines, makers, megabytes * 1e6)


def _life(work: float, usual: float) -> Life:
    """docs/churn.md, goodput: rounds of 12.3 s, 8 of them inner steps; five seconds until a killed peer works again."""
    return Life(work=work, tail=usual - work, restart=5.0, spread=0.03, factor=2.0, bound=1e4)


def _goodput(churn: float, usual: float, work: float) -> float:
    """Per cent of the calm swarm's, six peers, mean of some seeds of about the ten rounds that were measured."""
    life, total = _life(work, usual), 0.0
    for seed in range(SEEDS):
        calm, found = (play(life, 6, 0, rate, seed, rounds=10) for rate in (0.0, churn))
        total += found.counted / found.round_seconds / (calm.counted / calm.round_seconds)
    return 100 * total / SEEDS


def measured() -> Iterator[Row]:
    """Our own measurements, all over emulated lines."""
    exchange, churn = "exchange.md", "churn.md"
    for peers, alone, swarm in ((8, 116.3, 16.6), (16, 233.0, 20.4)):
        one = _figures(peers + 1, 1, 50)
        yield Row(f"50 MB from one to {peers}, origin", "s", alone, one.origin().seconds, exchange)
        yield Row(f"50 MB from one to {peers}, swarm", "s", swarm, one.swarm().seconds, exchange, fitted=peers == 8)
    equal, uneven = _figures(8, 8, 5), _figures(8, 8, 5, thin=True)
    yield Row("5 MB from each of 8 to all, origin", "s", 10.3, equal.origin().seconds, exchange)
    yield Row("5 MB from each of 8 to all, swarm", "s", 12.0, equal.swarm().seconds, exchange)
    yield Row("the same, one uplink 4 × thinner, origin", "s", 40.5, uneven.origin().seconds, exchange)
    yield Row("the same, one uplink 4 × thinner, swarm", "s", 18.5, uneven.swarm().seconds, exchange)
    for donors, seconds in ((1, 16.6), (8, 4.8)):
        home = Line.of(donors, *HOME)
        yield Row(
            f"200 MB from {donors} donor{'s' * (donors > 1)}",
            "s",
            seconds,
            fetch_seconds(200e6, home, [home]),
            churn,
            True,
        )
    talk = 5.2 - 1.0
    yield Row("a round with 8 s of training", "s", 12.3, 8.0 + talk, churn)
    for rate, goodput in ((0.05, 72.0), (0.1, 82.0), (0.2, 63.0)):
        yield Row(f"goodput at {rate:g} deaths per peer and round", "%", goodput, _goodput(rate, 12.3, 8.5), churn)
    yield Row("longest round there", "s", 29.0, _longest(), churn)


def _longest() -> float:
    life = _life(8.5, 12.3)
    return max(play(life, 6, 0, 0.2, seed, rounds=10).longest for seed in range(SEEDS))


@dataclass(frozen=True, slots=True)
class Published:
    """What a report says of one run's exchange."""

    name: str
    params: float
    contributors: int
    compute_seconds: float
    exchange_seconds: float
    up_mbps: float = 110.0
    down_mbps: float = 500.0
    bits_per_value: int = 14
    """Two bits of a value, twelve of its place."""
    kept: int = 64
    chunk: int = 4096

    @property
    def payload(self) -> float:
        """Bytes, by the report's own format."""
        return self.params * self.kept * self.bits_per_value / 8 / self.chunk

    def bucket(self, times: float = 1.0) -> Transfer:
        """The exchange by the bare division that the lines allow, bytes over bits: no headers, no start, nothing lost.

        All peers contribute and each reads all payloads, its own too, as the report counts them.
        """
        line = Line(self.contributors, self.up_mbps * MBIT * times, self.down_mbps * MBIT * times)
        up, down = self.payload / line.up, self.contributors * self.payload / line.down
        return Transfer(self.payload, self.contributors * self.payload, up + down, "")

    def utilisation(self, exchange_seconds: float) -> float:
        """Training ÷ (training + everything else), as the report defines it."""
        return self.compute_seconds / (self.compute_seconds + exchange_seconds)


COVENANT = Published("Covenant-72B", 72_747_327_488, 20, 1200, 70)
"""arXiv 2603.08163: parameters as in its table 4, which counts the tied matrix twice; 70 s; 94.5 %."""
SPARSELOCO_8B = Published("SparseLoCo, 8B", 8.0e9, 15, 270, 12)
"""The same report's 8B run: 15 contributors, 4.5 minutes, 12 s; 95.7 %. Its exact size is not told: 8.0e9 assumed."""


def arithmetic(run: Published) -> Iterator[str]:
    """Whether the seconds that a report names can be had on the lines that it names, step by step."""
    gb, up, down = (
        run.payload / 1e9,
        run.payload / (run.up_mbps * MBIT),
        run.contributors * run.payload / (run.down_mbps * MBIT),
    )
    said, found = run.utilisation(run.exchange_seconds), run.utilisation(up + down)
    kept = f"{run.kept}/{run.chunk} × {run.bits_per_value} bit"
    yield f"{run.name}: {run.params / 1e9:.2f}e9 parameters × {kept} = {gb:.2f} GB a payload"
    yield f"up     {gb:.2f} GB × 8 / {run.up_mbps:g} Mb/s = {up:.0f} s"
    yield f"down   {run.contributors} × {gb:.2f} GB × 8 / {run.down_mbps:g} Mb/s = {down:.0f} s"
    yield f"both   {up + down:.0f} s, where the report has {run.exchange_seconds:g} s"
    whole = f"{run.compute_seconds:g} + {up + down:.0f}"
    yield f"so     {run.compute_seconds:g} / ({whole}) = {found:.1%} utilisation, where the report has {said:.1%}"
    need = run.contributors * run.payload / run.exchange_seconds / MBIT
    yield (
        f"or     {run.exchange_seconds:g} s take {need / 1000:.1f} Gb/s down, even if nothing had to go up first; "
        f"if Mb/s meant MB/s: {(up + down) / 8:.0f} s"
    )
