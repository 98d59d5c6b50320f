"""A program of ours beside a quickstart, in a process of its own, which ends with it."""

import subprocess
import sys
from pathlib import Path

LEAVE_SECONDS = 10
"""To end by itself, before it is killed."""


class Child:
    """`python -m …`, which lives until its standard input closes."""

    def __init__(self, log: Path, *arguments: str) -> None:
        """Start it; `log` takes its standard error."""
        self.log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(  # in a session of its own: Ctrl-C is for us to handle
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self.pid, self.stdin, self.stdout = self._process.pid, self._process.stdin, self._process.stdout

    def close(self) -> None:
        """End it, if nobody has."""
        self.stdin.close()
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.stdout.close()
