"""All of `elastic bench churn`, one part after the other, and its tables."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from elastic.bench.churn import donors, goodput, kills, splits
from elastic.bench.churn.swarm import Say, Settings, Swarm
from elastic.bench.churn.wan import LinkSpeed, Wan

PEERS, VALIDATORS = 6, 4
JUMBO = 9000
"""MTU where much is sent: the packets of a fast line are too many for two cores."""
ADAPTIVE = Settings(pace=8.0, train_seconds=24.0, gather_seconds=24.0)
"""Rounds that are not much shorter than a process needs to start again, as in a real run they are far longer."""
FIXED = replace(ADAPTIVE, deadline_factor=1e6)
"""Everyone is waited for until 48 s have passed, some four usual rounds."""

Tables = dict[str, list[dict[str, Any]]]


class Part(StrEnum):
    """What can be measured by itself."""

    KILLS = "kills"
    SPLITS = "splits"
    GOODPUT = "goodput"
    JOIN = "join"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    parts: tuple[Part, ...] = tuple(Part)
    phases: tuple[str, ...] = kills.PHASES
    split_seconds: float = 60.0
    anchor_bytes: int = 200_000_000
    death_rates: tuple[float, ...] = (0.05, 0.1, 0.2)
    churn_seconds: float = 120.0
    calm_seconds: float = 60.0


QUICK = Scale(
    phases=kills.QUICK_PHASES,
    split_seconds=20.0,
    anchor_bytes=50_000_000,
    death_rates=(0.1,),
    churn_seconds=90.0,
    calm_seconds=30.0,
)


def measure(folder: Path, scale: Scale, speed: LinkSpeed, seed: int, say: Say) -> Tables:
    """Everything; each row is told as it comes, and `folder` holds the peers' logs."""
    return asyncio.run(_measure(folder, scale, speed, seed, say))


async def _measure(folder: Path, scale: Scale, speed: LinkSpeed, seed: int, say: Say) -> Tables:
    tables: Tables = {}
    say(f"{PEERS} peers, {VALIDATORS} of them validators, {speed}")
    if Part.KILLS in scale.parts or Part.SPLITS in scale.parts:
        with Wan(PEERS + 1, speed, seed) as wan:
            tables |= await _disturbed(wan, folder, scale, say)
    if Part.GOODPUT in scale.parts:
        with Wan(PEERS + 1, speed, seed) as wan:
            tables[Part.GOODPUT] = await _goodput(wan, folder, scale, seed, say)
    if Part.JOIN in scale.parts:
        with Wan(donors.DONORS + 1, replace(speed, mtu=JUMBO), seed) as wan:
            tables[Part.JOIN] = await _join(wan, folder, scale, say)
    return tables


async def _disturbed(wan: Wan, folder: Path, scale: Scale, say: Say) -> Tables:
    swarm, tables = Swarm(wan, folder / "swarm", PEERS, VALIDATORS, Settings()), Tables()
    async with swarm.running():
        say(f"a usual round takes {swarm.usual_seconds():.1f} s")
        if Part.KILLS in scale.parts:
            tables[Part.KILLS] = await _kills(swarm, scale, say)
        if Part.SPLITS in scale.parts:
            tables[Part.SPLITS] = await _splits(swarm, scale, say)
    return tables


async def _join(wan: Wan, folder: Path, scale: Scale, say: Say) -> list[dict[str, Any]]:
    say(f"\na joiner fetches an anchor of {scale.anchor_bytes / 1e6:.0f} MB\n{donors.header()}")
    found = await donors.transfers(wan, folder / "join", scale.anchor_bytes, say)
    say(f"{donors.DONORS} donors are {found[0].seconds / found[1].seconds:.1f} times as fast as one")
    return [asdict(row) for row in found]


async def _kills(swarm: Swarm, scale: Scale, say: Say) -> list[dict[str, Any]]:
    say("\n" + kills.header())
    return [asdict(blow) for blow in await kills.matrix(swarm, scale.phases, say)]


async def _splits(swarm: Swarm, scale: Scale, say: Say) -> list[dict[str, Any]]:
    say("\n" + splits.header())
    found = []
    for name in splits.SPLITS:
        found.append(await splits.split(swarm, name, scale.split_seconds))
        say(splits.line(found[-1]))
    return [asdict(each) for each in found]


async def _goodput(wan: Wan, folder: Path, scale: Scale, seed: int, say: Say) -> list[dict[str, Any]]:
    say("\n" + goodput.header())
    found: list[goodput.Goodput] = []
    for deadlines, settings in (("adaptive", ADAPTIVE), ("fixed", FIXED)):
        swarm = Swarm(wan, folder / deadlines, PEERS, VALIDATORS, settings)
        async with swarm.running():
            usual = swarm.usual_seconds()
            for rate in (0.0, *scale.death_rates):
                await swarm.all_good(1)
                seconds = scale.churn_seconds if rate else scale.calm_seconds
                found.append(await goodput.measure(swarm, deadlines, rate, seconds, usual, seed))
                say(goodput.line(found[-1], calm=found[0].tokens_per_second))
    return [asdict(each) for each in found]
