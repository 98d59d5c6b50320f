"""The model that a run has come to, as its peers on this machine hold it."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from elastic.actors.anchors import Held, read_anchor
from elastic.config import RunConfig, load_config
from elastic.errors import ConfigError, MalformedError, StateError
from elastic.messages import RoundIndex
from elastic.reports import StateMeta
from elastic.state.chain import CHAIN_FILE, manifests_in
from elastic.state.store import ANCHOR_PREFIX, STATE_FOLDER
from elastic.terms import run_files

logger = logging.getLogger(__name__)

META = f"{STATE_FOLDER}/state.json"
"""In a peer's state directory: what its trainer holds."""
ANCHOR_NAME = re.compile(r"anchor-(\d{8})-[0-9a-f]{12}\.bin")
"""As `elastic.reports.file_name` makes it, in `state/files` of a peer's state directory."""
PEER_ABOVE = 2
"""Of the folders above such a file, the number of that peer's."""
TRIES = 5
"""A peer that trains on replaces its files; then the newer ones are read."""


def peers_of(where: Path, run_file: Path | None) -> list[RunConfig]:
    """Run files of peers of one run, each with the folder where that peer's state is.

    Args:
        where: a run file, a peer's state directory, or a folder of them, as of a quickstart.
        run_file: of that run, for folders without one.

    Raises:
        ConfigError: there are none, or none that can be read.
    """
    if not where.exists():
        raise ConfigError(f"{where}: there is nothing of that name")
    if run_file is None:
        return run_files(where)
    shared = load_config(run_file)
    states = [where] if _meta_of(where).exists() else sorted(path.parents[1] for path in where.glob(f"*/{META}"))
    if not states:
        raise ConfigError(f"{where}: neither a peer's state directory nor a folder of them (no {META})")
    return [shared.model_copy(update={"local": shared.local.model_copy(update={"state_dir": path})}) for path in states]


def newest(configs: Sequence[RunConfig], where: Path) -> Held:
    """The anchor of the latest round that any of these peers has got to, checked against its digest.

    Raises:
        ConfigError: none of them has one yet.
        StateError: it cannot be read, is damaged, or is of another model than the run file's.
    """
    for left in reversed(range(TRIES)):
        found = [(meta, each) for each in configs if (meta := _read_meta(_meta_of(each.local.state_dir))) is not None]
        if not found:
            raise ConfigError(
                f"{where}: no peer has a model there yet; `elastic quickstart` or `elastic join` makes one"
            )
        meta, config = max(found, key=lambda each: each[0].round)
        path = config.local.state_dir / STATE_FOLDER / "files" / meta.anchor_file
        try:
            return read_anchor(config, meta.round, meta.anchor, path)
        except FileNotFoundError as error:
            if not left:
                raise StateError(f"{path}: is not there, though state.json beside it names it") from error
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error
    raise AssertionError("the last try returns or raises")


def kept(where: Path, run_file: Path | None) -> Held | None:
    """The anchor in a file of a peer's state directory; None: `where` is no such file.

    Raises:
        ConfigError: there is no run file in that directory, and none is given.
        StateError: it cannot be read, is damaged, or is of another model than the run file's.
    """
    named = ANCHOR_NAME.fullmatch(where.name)
    folders = where.resolve().parents
    if named is None or not where.is_file() or len(folders) < PEER_ABOVE + 1:
        return None
    peer = folders[PEER_ABOVE]
    config, *_ = peers_of(peer, run_file)
    try:
        return read_anchor(config, RoundIndex(int(named[1])), None, where)
    except OSError as error:
        raise StateError(f"{where}: {error.strerror}") from error


def of_round(configs: Sequence[RunConfig], round_: int) -> Held:
    """The anchor that an earlier round started from: kept by one of these peers, or rebuilt from their records.

    Raises:
        ConfigError: the run has not got so far.
        StateError: see `elastic.replay`.
    """
    if (kept := _kept(configs, round_)) is not None:
        return kept
    from elastic.replay import replay

    last = None
    folders = [each.local.state_dir for each in configs]
    for step in replay(configs[0].shared, folders, until=round_):
        last = step
    assert last is not None, "an archive has a genesis"
    if last.manifest.round + 1 != round_:
        raise ConfigError(f"--round {round_}: the run has got to round {last.manifest.round + 1}")
    return Held(configs[0], RoundIndex(round_), last.anchor, last.tensors)


def _kept(configs: Sequence[RunConfig], round_: int) -> Held | None:
    """The anchor of an earlier round, if one of these peers still has it; a damaged one is as good as none."""
    for config in configs:
        folder = config.local.state_dir
        named = {each.round: each.anchor for each in manifests_in(folder / CHAIN_FILE)}.get(RoundIndex(round_))
        for path in sorted((folder / STATE_FOLDER / "files").glob(f"{ANCHOR_PREFIX}-{round_:08d}-*.bin")):
            try:
                return read_anchor(config, RoundIndex(round_), named, path)
            except (OSError, StateError) as error:
                logger.warning("%s: left out: %s", path, error)
    return None


def _meta_of(folder: Path) -> Path:
    return folder / META


def _read_meta(path: Path) -> StateMeta | None:
    try:
        return StateMeta.from_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    except MalformedError as error:
        raise StateError(f"{path}: is damaged: {error}") from error
