"""What people see of running peers: a table, live or as text. No Ray, no network: it is given statuses."""

import io
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from elastic.messages import PeerStatus

STALE_SECONDS = 15.0
"""A peer whose status is older than this is not running any more."""


def alive(status: PeerStatus) -> bool:
    """Whether a status is recent and not a farewell."""
    return status.stage not in ("left", "failed") and time.time() - status.updated < STALE_SECONDS


def table(statuses: Sequence[PeerStatus], *, title: str = "", slowest: str | None = None) -> Table:
    """Peers as rows. `slowest`: name of the peer whose contribution arrived last in the last round."""
    out = Table(title=title or None, title_justify="left", expand=False, pad_edge=False)
    for heading in (
        "peer",
        "doing",
        "round",
        "step",
        "loss",
        "tokens/s",
        "counted",
        "sent",
        "received",
        "anchor",
    ):
        right = heading in ("round", "step", "loss", "tokens/s", "counted", "sent", "received")
        out.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for status in statuses:
        out.add_row(
            status.name + (" (last)" if status.name == slowest else ""), _doing(status), str(status.round),
            str(status.step), f"{status.loss:.3f}" if status.loss is not None else "-",
            f"{status.tokens_per_second:,.0f}", f"{status.rounds_counted}/{status.rounds_contributed}",
            size(status.bytes_out), size(status.bytes_in), (status.digest or "-")[:8],
        )  # fmt: skip
    return out


def status_table(statuses: Sequence[PeerStatus], columns: int) -> str:
    """The table as plain text."""
    console = Console(file=io.StringIO(), width=max(columns, 110), force_terminal=False)
    console.print(table(sorted(statuses, key=lambda status: status.name)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def size(num_bytes: int) -> str:
    """Bytes for people: 1.2 MB."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _doing(status: PeerStatus) -> str:
    if status.stage in ("left", "failed"):
        return status.stage
    if not alive(status):
        return "gone"
    return status.phase or status.stage
