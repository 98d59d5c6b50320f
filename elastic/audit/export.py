"""`elastic incentives export`: what a run thought of its peers, for the run file of the next one."""

from __future__ import annotations

import json
from pathlib import Path

from elastic.audit.evidence import Witness, names_in
from elastic.check import admission
from elastic.errors import ConfigError
from elastic.registry import resolve
from elastic.sections import PluginChoice

DIGITS = 4
TABLE = "carried"
"""Of an incentive's settings those that a run begins with."""


def reputations(where: Path, witness: Witness, choice: PluginChoice) -> str:
    """A table for a run file: peer id = reputation, best first, with names as remarks.

    Computed again, with the incentive `choice`, from what the witness of that folder wrote down. Who would begin as
    everybody does is left out, and those behind as many as the table takes.

    Raises:
        ConfigError: that incentive is none that could begin with reputations.
    """
    cls, settings = resolve("incentive", choice)
    holder = admission(settings)
    if not hasattr(holder, TABLE):
        raise ConfigError(
            f'the incentive "{choice.name}" has no reputations that a run could begin with: say --with reputation, or '
            "--with FILE.toml, for what an incentive that has them would have thought of the run"
        )
    names, scores = names_in(where), witness.tell(cls(settings))
    rounded = {peer: round(score, DIGITS) for peer, score in scores.items()}
    ranked = sorted((peer for peer in rounded if rounded[peer]), key=lambda peer: (-rounded[peer], peer))
    told = ranked[: _room(holder)]
    teller = json.dumps(names.get(witness.peer, witness.peer))
    lines = [
        f"# run {witness.run}, round {witness.rounds[-1].round}, as {teller} saw it, by {choice.name}",
        f"# left out: {len(scores) - len(ranked)} with nothing; {len(ranked) - len(told)} behind the best {len(told)}",
        f"[shared.incentive.{TABLE if holder is settings else f'reputation.{TABLE}'}]",
    ]
    for peer in told:
        remark = f"  # {json.dumps(name)}" if (name := names.get(peer)) else ""
        lines.append(f"{json.dumps(peer)} = {rounded[peer]}{remark}")
    return "\n".join(lines)


def _room(settings: object) -> int | None:
    """So many peers the table takes; None: any number."""
    limits = type(settings).model_fields[TABLE].metadata  # type: ignore[attr-defined]
    return next((each.max_length for each in limits if hasattr(each, "max_length")), None)
