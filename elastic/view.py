"""What people see of peers on this machine: a table, live or as text. No Ray, no network: it is given statuses."""

import io
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from elastic.reports import PeerStatus

STALE_SECONDS = 15.0
"""A peer whose status is older than this is not running any more."""


ENDED = ("left", "failed")
"""Stages after which nothing more comes."""
HEADINGS = {
    "peer": "left", "doing": "left", "round": "right", "step": "right", "loss": "right", "tokens/s": "right",
    "counted": "right", "sent": "right", "received": "right", "anchor": "left",
}  # fmt: skip
"""Columns of the table, and how each is justified."""


def alive(status: PeerStatus) -> bool:
    """Whether a status is recent and not a farewell."""
    return status.stage not in ENDED and time.time() - status.updated < STALE_SECONDS


def table(statuses: Sequence[PeerStatus], *, title: str = "", slowest: str | None = None) -> Table:
    """Peers as rows. `slowest`: name of the peer whose contribution arrived last in the last round."""
    out = Table(title=title or None, title_justify="left", expand=False, pad_edge=False)
    for heading, justify in HEADINGS.items():
        out.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for status in statuses:
        name = status.name + (" (last)" if status.name == slowest else "")
        out.add_row(
            Text(name), Text(doing(status)), str(status.round), str(status.step),
            f"{status.loss:.3f}" if status.loss is not None else "-",
            f"{status.tokens_per_second:,.0f}", f"{status.rounds_counted}/{status.rounds_contributed}",
            size(status.bytes_out), size(status.bytes_in), (status.digest or "-")[:8],
        )  # fmt: skip
    return out


def status_table(statuses: Sequence[PeerStatus], columns: int) -> str:
    """The table as plain text, at least wide enough not to lose a column; what made a peer fail stands below it."""
    console = Console(file=io.StringIO(), width=max(columns, 110), force_terminal=False)
    ordered = sorted(statuses, key=lambda status: status.name)
    console.print(table(ordered))
    assert isinstance(console.file, io.StringIO)
    measured = [f"{each.name}: metrics at {each.metrics}" for each in ordered if each.metrics and alive(each)]
    evaluated = [f"{each.name} evaluated {each.evaluated}" for each in ordered if each.evaluated]
    failures = [f"{each.name} failed: {each.error}" for each in ordered if each.stage == "failed" and each.error]
    return "\n".join(
        [
            console.file.getvalue().rstrip(),
            *map(restarted, filter(_came_back, ordered)),
            *measured,
            *evaluated,
            *failures,
        ]
    )


def restarted(status: PeerStatus) -> str:
    """How often a peer came back, and from what."""
    times = "once" if status.restarts == 1 else f"{status.restarts} times"
    return f"{status.name} restarted {times}, the last time after this: {status.restarted_after}"


def _came_back(status: PeerStatus) -> bool:
    return status.restarts > 0


def doing(status: PeerStatus) -> str:
    """What a peer does, in a word or two; "gone" if it has fallen silent without a farewell."""
    if status.stage in ENDED:
        return status.stage
    if not alive(status):
        return "gone"
    return status.phase or status.stage


def size(num_bytes: int) -> str:
    """Bytes for people: 1.2 MB."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    value = num_bytes / 1000
    for unit in ("kB", "MB", "GB"):
        if value < 999.95:
            return f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
