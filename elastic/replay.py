"""The audit of a run: from the genesis, every manifest and every payload, bit for bit, to the anchor of any round.

Nothing is believed: signatures, the order of manifests, each payload's digest and each anchor's are computed again, on
this machine, and the first record that does not fit is named. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elastic.agreement.validator import check_manifest
from elastic.config import Shared
from elastic.errors import ElasticError, MalformedError, SignatureInvalidError, StateError
from elastic.messages import GENESIS, Counted, Digest, Manifest, RoundIndex, StateMeta, digest_of
from elastic.registry import build
from elastic.state.chain import CHAIN_FILE
from elastic.state.store import ANCHOR_PREFIX
from elastic.train.outer import Turns, initial_anchor, outer_steps
from elastic.wire.dense import encode_state

BLOBS, STATE = "blobs", "state"
"""Folders in a peer's state directory: payloads, and the trainer's files."""


@dataclass(frozen=True, slots=True)
class Step:
    """One manifest that fits."""

    manifest: Manifest
    anchor: Digest
    """Of the anchor after it."""
    state: bytes
    """That anchor, as a peer keeps and serves it."""


def peer_folders(where: Path) -> list[Path]:
    """State directories of peers: this one, or those in it.

    Raises:
        StateError: there is none.
    """
    found = [where] if (where / CHAIN_FILE).is_file() else sorted(path.parent for path in where.glob(f"*/{CHAIN_FILE}"))
    if not found:
        raise StateError(f"{where}: neither a peer's state directory nor a folder of them (no {CHAIN_FILE})")
    return found


def replay(shared: Shared, folders: Sequence[Path], note: Callable[[str], None] = lambda line: None) -> Iterator[Step]:
    """Every round again, from the genesis on; then whether what the peers hold is what came out.

    Args:
        shared: the run.
        folders: state directories of its peers: what one of them lacks another may have.
        note: told what was left out.

    Raises:
        StateError: the first record that does not fit, or that is nowhere.
    """
    archive = _Archive(shared, folders, note)
    model = build("model", shared.model)
    model.initialize(shared.seed)
    params = dict(model.named_parameters())
    like = {name: torch.empty(param.shape, device="meta") for name, param in params.items()}
    anchor, reducer, turns = initial_anchor(params, shared.outer), build("reducer", shared.reducer), Turns(like)
    state, digests = encode_state(anchor), {}
    for round_, (manifest, where) in sorted(archive.manifests.items()):
        digests[round_] = digest = digest_of(state)
        if manifest.anchor != digest:
            raise StateError(f"{where}: applies to the anchor {manifest.anchor[:12]}, replayed: {digest[:12]}")
        if not manifest.void:
            parts = [(archive.payload(entry, round_, reducer, like), entry.share) for entry in manifest.counted]
            outer_steps(anchor, parts, reducer, turns, shared.outer)
            state = encode_state(anchor)
        digests[RoundIndex(round_ + 1)] = digest_of(state)
        yield Step(manifest, digests[RoundIndex(round_ + 1)], state)
    for folder in folders:
        _check_held(folder / STATE, digests)


class _Archive:
    """Manifests and payloads of a run, wherever they lie."""

    def __init__(self, shared: Shared, folders: Sequence[Path], note: Callable[[str], None]) -> None:
        self.manifests: dict[RoundIndex, tuple[Manifest, str]] = {}
        """Round → manifest, and which record it is."""
        self._blobs: dict[str, Path] = {}
        for folder in folders:
            self._read_chain(folder / CHAIN_FILE, note)
            self._read_blobs(folder / BLOBS)
        self._check_chain(shared)

    def payload(self, entry: Counted, round_: RoundIndex, reducer: Any, like: Any) -> Any:
        """What a manifest counts, decoded."""
        path = self._blobs.get(entry.payload)
        if path is None:
            raise StateError(
                f"round {round_}: nobody here has the payload of {entry.peer} ({entry.payload[:12]}…): peers keep the "
                "newest ones; add the folder of one that has it"
            )
        data = path.read_bytes()
        try:
            if len(data) != entry.size_bytes:
                raise MalformedError(f"{entry.size_bytes} bytes counted, {len(data)} are there")
            return reducer.decode(data, like)
        except MalformedError as error:
            raise StateError(f"{path}: round {round_}, {entry.peer}: {error}") from error

    def _read_chain(self, path: Path, note: Callable[[str], None]) -> None:
        lines = path.read_bytes().split(b"\n")
        if lines[-1]:
            note(f"{path}: the last line is torn, as a crash leaves it; left out")
        for number, line in enumerate(lines[:-1], 1):
            where = f"{path} line {number}"
            try:
                manifest = Manifest.from_bytes(line)
                if manifest.canonical() != line:
                    raise MalformedError("not in its canonical form")
            except MalformedError as error:
                raise StateError(f"{where}: {error}") from error
            known, elsewhere = self.manifests.setdefault(manifest.round, (manifest, where))
            if known != manifest:
                raise StateError(f"{where}: another manifest of round {manifest.round} than {elsewhere}")

    def _read_blobs(self, folder: Path) -> None:
        for path in sorted(folder.glob("[0-9a-f]*")):
            if path.suffix != ".tmp" and digest_of(path.read_bytes()) != path.name:
                raise StateError(f"{path}: its bytes have another digest than its name")
            self._blobs.setdefault(path.name, path)

    def _check_chain(self, shared: Shared) -> None:
        previous: Manifest | None = None
        for number, round_ in enumerate(sorted(self.manifests)):
            if round_ != number:
                raise StateError(f"no manifest of round {number}: replay needs all from the genesis on")
            manifest, where = self.manifests[round_]
            try:
                check_manifest(manifest, run=shared.run, validators=shared.agreement.validators, previous=previous)
            except (MalformedError, SignatureInvalidError) as error:
                raise StateError(f"{where}: {error}") from error
            previous = manifest
        if not self.manifests:
            raise StateError(f"no manifest of round {GENESIS}: the run has not begun")


def _check_held(folder: Path, digests: dict[RoundIndex, Digest]) -> None:
    """What a peer holds: every anchor on its disk is the one of its round."""
    meta_file = folder / "state.json"
    if not meta_file.is_file():
        return
    try:
        meta = StateMeta.from_bytes(meta_file.read_bytes())
    except ElasticError as error:
        raise StateError(f"{meta_file}: {error}") from error
    if meta.anchor != digests.get(meta.round):
        raise StateError(f"{meta_file}: holds another anchor of round {meta.round} than was replayed")
    for name in sorted(meta.files()):
        if not (folder / "files" / name).is_file():
            raise StateError(f"{meta_file}: names {name}, which is not there")
    for path in sorted((folder / "files").glob(f"{ANCHOR_PREFIX}-{'[0-9]' * 8}-*.bin")):
        round_ = RoundIndex(int(path.name.split("-")[1]))
        if digest_of(path.read_bytes()) != digests.get(round_):
            raise StateError(f"{path}: another anchor of round {round_} than was replayed")
