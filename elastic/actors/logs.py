"""Where a peer's processes log, `peer.log` in its state directory, and where their spans go.

Set up once in each process, never at import.
"""

import logging
from logging.handlers import RotatingFileHandler

from elastic import trace
from elastic.config import RunConfig
from elastic.wire.signing import Identity

ROTATE_BYTES = 10_000_000


def log_to_file(config: RunConfig) -> None:
    """Send this process's log to `peer.log` in the state directory."""
    config.local.state_dir.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(config.local.state_dir / "peer.log", maxBytes=ROTATE_BYTES, backupCount=2)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("elastic", "incentives", "model_zoo", "hivemind"):
        logger = logging.getLogger(name)
        for before in logger.handlers:
            before.close()
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(config.local.log_level if name != "hivemind" else "WARNING")


def trace_to(config: RunConfig) -> None:
    """Send this process's spans where the run file says."""
    local, peer = config.local, Identity.load(config.key_path).peer
    trace.setup(
        local.trace, run=config.shared.run, peer=peer, name=local.name or peer[-6:], state_dir=local.state_dir
    )  # fmt: skip
