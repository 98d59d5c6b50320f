"""A plan for programs: the same numbers as in `view`, as JSON has them. Bytes, seconds, dollars."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from elastic.plan.advice import changes, limits, line_needed, obstacles, path
from elastic.plan.checked import COVENANT, SPARSELOCO_8B, arithmetic, measured
from elastic.plan.estimate import Estimate
from elastic.plan.memory import Room
from elastic.plan.simulate import Row


def of_plan(found: Estimate) -> dict[str, Any]:
    """Everything that `elastic plan` says."""
    case = found.case
    return {
        "run": case.shared.run, "params": case.sizes.num_params(), "payload_bytes": case.payload, "peers": case.peers,
        "contributors": case.makers, "topology": found.way, **_totals(found),
        "groups": [
            {
                **share.group.model_dump(), "steps": share.steps, "whole_seconds": share.whole_seconds,
                "rooms": {room.place: _room(room) for room in share.rooms},
            } for share in found.shares
        ],
        "transfers": {name: asdict(transfer) for name, transfer in found.transfers.items()},
        "phases": {phase.name: phase.seconds for phase in found.phases},
        "obstacles": list(obstacles(found)), "limits": list(limits(found)), "lines_needed_times": line_needed(found),
        "changes": [{"what": each.what, **_totals(each.after)} for each in changes(found)],
        "path": [{"what": each.what, **_totals(each.after)} for each in path(found)],
        "measured": [{**asdict(row), "off": row.off} for row in measured()],
        "published": [*arithmetic(COVENANT), *arithmetic(SPARSELOCO_8B)],
    }  # fmt: skip


def of_growth(rows: Sequence[Row], churn: float, seed: int) -> dict[str, Any]:
    """Everything that the simulator says."""
    return {
        "churn": churn, "seed": seed,
        "rows": [
            {
                "peers": row.usual.case.peers, "contributors": row.usual.case.makers,
                "transfers": {name: asdict(transfer) for name, transfer in row.usual.transfers.items()},
                **asdict(row.outcome), "goodput": row.goodput, "tokens_per_day": row.tokens_per_day,
            } for row in rows
        ],
    }  # fmt: skip


def _room(room: Room) -> dict[str, Any]:
    items = {item.name: item.size_bytes for item in room.items}
    return {"items": items, "bytes": room.used, "of_bytes": room.size_bytes, "fits": room.fits}


def _totals(found: Estimate) -> dict[str, Any]:
    return {
        "round_seconds": found.round_seconds, "utilisation": found.utilisation, "mfu": found.mfu,
        "tokens": found.tokens, "tokens_per_day": found.tokens_per_day, "usd_per_day": found.usd_per_day,
        "days": found.days, "join_seconds": found.join_seconds, "in_time": found.in_time,
    }  # fmt: skip
