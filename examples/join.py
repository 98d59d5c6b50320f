"""Join a run as a Ray job: `ray job submit --working-dir . -- python examples/join.py run.toml`.

What `elastic join` does, line by line; `ray job stop` leaves politely, but does not wait until this round counts.
"""

import sys
from pathlib import Path

from elastic.actors.environment import attach
from elastic.actors.offline import check_corpus
from elastic.cli import require_bootstrap, say, validate
from elastic.config import load_config
from elastic.errors import ElasticError


def join(run_file: Path) -> None:
    """Read and check the run file, start this peer's actors on the cluster, and print a line per round."""
    config = load_config(run_file)
    validate(config)
    check_corpus(config)
    require_bootstrap(config)
    attach()  # before Ray is imported
    from elastic.actors.follow import follow
    from elastic.actors.launch import connect, start_peer

    connect(config.local.ray)
    peer = start_peer(config)
    say(follow(peer, say))


if __name__ == "__main__":
    try:
        join(Path(sys.argv[1] if len(sys.argv) > 1 else "run.toml"))
    except ElasticError as error:
        sys.exit(f"error: {error}")
