"""How long rounds take: what the deadlines follow, remembered from one life to the next.

A small file of no other worth. Without it, a peer that was started again would wait for a dead one as long as the run
file allows, which is as good as never: nothing is known of a first round.
"""

import json
import logging
import math
from pathlib import Path

from elastic.messages import Seconds

logger = logging.getLogger(__name__)

PACE_FILE = "pace.json"
"""Its name in a peer's state directory."""
KEPT = 32
"""Rounds."""


class Pace:
    """Durations of the last rounds in which everyone arrived, newest last."""

    def __init__(self, path: Path | None = None) -> None:
        """Read what the last life wrote; None: remember nothing."""
        self._path = path
        self.history: list[Seconds] = [] if path is None else _read(path)

    def note(self, seconds: Seconds) -> None:
        """Everyone arrived in a round of that length."""
        self.history = [*self.history, seconds][-KEPT:]
        if self._path is not None:
            try:
                temporary = self._path.with_name(self._path.name + ".new")
                temporary.write_text(json.dumps(self.history), encoding="utf-8")
                temporary.replace(self._path)
            except OSError as error:
                logger.warning("%s: %s", self._path, error)


def _read(path: Path) -> list[Seconds]:
    try:
        found = [Seconds(float(seconds)) for seconds in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s: how long rounds take is forgotten: %s", path, error)
        return []
    return [seconds for seconds in found if math.isfinite(seconds) and seconds > 0][-KEPT:]
