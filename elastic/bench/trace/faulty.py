"""A peer of `bench.churn.bare` whose machine is slow when a file says so; see `faults`.

Run by `swarm.Host`; says at its end how many spans it made.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elastic import deliberate, propose, seen, trace_file
from elastic.bench.churn import bare
from elastic.bench.trace.faults import ails
from elastic.messages import InnerReport, RoundPlan
from elastic.verify import checks


def slow_machine(folder: Path) -> None:
    """From now on this process is as slow as the file in `folder` says."""
    fsync, check, drafts, objects = os.fsync, checks.check_payload, propose.own_manifest, propose.objection

    def slow_fsync(descriptor: Any) -> None:
        time.sleep(ails(folder).fsync)
        fsync(descriptor)

    def slow_check(*args: Any) -> Any:
        time.sleep(ails(folder).check)
        return check(*args)

    def slowly(think: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any) -> Any:
            time.sleep(ails(folder).sign)
            return think(*args)

        return slow

    for where, name, slower in (
        (os, "fsync", slow_fsync), (seen, "check_payload", slow_check),
        (deliberate, "own_manifest", slowly(drafts)), (deliberate, "objection", slowly(objects)),
    ):  # fmt: skip
        setattr(where, name, slower)


class SlowTrainer(bare.PacedTrainer):
    """Whose inner steps take longer when the file says so."""

    folder = Path()

    async def inner_steps(self, plan: RoundPlan) -> InnerReport:
        inner = await super().inner_steps(plan)
        await asyncio.sleep(ails(self.folder).inner)
        return inner


def counted() -> Callable[[], int]:
    """How many spans of this process ended."""
    number, note_end = 0, trace_file.GuardedExporter.note_end

    def note(self: trace_file.GuardedExporter) -> None:
        nonlocal number
        number += 1
        note_end(self)

    trace_file.GuardedExporter.note_end = note  # type: ignore[method-assign]
    return lambda: number


def main() -> None:
    """`python -m elastic.bench.trace.faulty FILE`, a run file as JSON."""
    SlowTrainer.folder = Path(sys.argv[1]).parent
    slow_machine(SlowTrainer.folder)
    spans = counted()
    try:
        bare.main(SlowTrainer)
    finally:
        bare.Narrator().say("spans", ended=spans())


if __name__ == "__main__":
    main()
