"""`elastic incentives export`: what a run thought of its peers, for the run file of the next one."""

from __future__ import annotations

import json
from pathlib import Path

from elastic.audit.evidence import best_witness, names_in
from elastic.check import admission
from elastic.config import PluginChoice, RunConfig
from elastic.errors import ConfigError
from elastic.messages import PeerId
from elastic.registry import resolve

DIGITS = 4


def reputations(where: Path, config: RunConfig, choice: PluginChoice) -> str:
    """A table for a run file: peer id = reputation, best first, with names as remarks.

    Computed again, with the incentive `choice`, from the evidence of the peer there that knows most.

    Raises:
        ConfigError: there is no evidence, or the run's incentive is none that could begin with reputations.
    """
    cls, settings = resolve("incentive", choice)
    table = _table_of(settings)
    if table is None:
        raise ConfigError(f'the incentive "{choice.name}" has no reputations that a run could begin with')
    witness, names, incentive = best_witness(where), names_in(where), cls(settings)
    scores: dict[PeerId, float] = {}
    for seen in witness.rounds:
        incentive.hear(seen.invitations)
        scores = incentive.score(seen.round, seen.evidence).scores
    last, teller = witness.rounds[-1].round, names.get(witness.peer, witness.peer)
    lines = [f"# run {config.shared.run}, round {last}, as {teller} saw it", f"[shared.incentive.{table}]"]
    for peer in sorted(scores, key=lambda each: (-scores[each], each)):
        remark = f"  # {json.dumps(name)}" if (name := names.get(peer)) else ""
        lines.append(f"{json.dumps(peer)} = {round(scores[peer], DIGITS)}{remark}")
    return "\n".join(lines)


def _table_of(settings: object) -> str | None:
    """Where an incentive's settings have reputations to begin with."""
    holder = admission(settings)
    if not hasattr(holder, "carried"):
        return None
    return "carried" if holder is settings else "reputation.carried"
