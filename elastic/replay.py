"""The audit of a run: every manifest and counted payload from the genesis on, bit for bit, to the anchor of any round.

Nothing is believed: signatures, the order of manifests, payloads' digests and anchors' are computed again, on this
machine, and the first record that does not fit is named. Nothing is written. What a crash leaves behind (a torn last
line, a payload that was never synced) is noted, and an error only if nobody has it whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elastic.agreement.charter import Charter
from elastic.agreement.manifests import check_final, check_manifest
from elastic.config import Shared
from elastic.errors import MalformedError, SignatureInvalidError, StateError
from elastic.exchange.blobs.store import BLOB_FOLDER
from elastic.messages import GENESIS, Counted, Digest, Manifest, RoundIndex
from elastic.registry import build
from elastic.reports import StateMeta, fits
from elastic.state.chain import CHAIN_FILE
from elastic.state.store import ANCHOR_PREFIX, META_FILES, STATE_FOLDER
from elastic.train.outer import Turns, outer_steps, with_momentum
from elastic.wire.dense import encode_state
from elastic.wire.tree import Table, blob_digest

_BLOB = re.compile(r"[0-9a-f]{64}")
_ANCHOR = re.compile(ANCHOR_PREFIX + r"-(\d{8})-.*\.bin")

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One manifest that fits."""

    manifest: Manifest
    anchor: Digest
    """Of the anchor after it."""
    witness: str | None
    """A record that names this anchor too; None: there is none, so nothing here could contradict it."""
    tensors: dict[str, torch.Tensor]
    """That anchor, until the next step is asked for."""

    def state(self) -> bytes:
        """That anchor as peers keep and serve it."""
        return encode_state(self.tensors)


def peer_folders(where: Path) -> list[Path]:
    """State directories of peers: this one, or those in it.

    Raises:
        StateError: there is none.
    """
    found = [where] if (where / CHAIN_FILE).is_file() else sorted(path.parent for path in where.glob(f"*/{CHAIN_FILE}"))
    if not found:
        raise StateError(f"{where}: neither a peer's state directory nor a folder of them (no {CHAIN_FILE})")
    return found


def replay(
    shared: Shared,
    folders: Sequence[Path],
    note: Note = lambda line: None,
    damaged: Note = lambda line: None,
    until: int | None = None,
) -> Iterator[Step]:
    """Every round again, from the genesis on, each compared with all that names its anchor; then a look at the rest.

    Args:
        shared: the run.
        folders: state directories of its peers: what one of them lacks another may have.
        note: told what a crash or time left out.
        damaged: told which copies are damaged of what others have whole, or of what decides nothing.
        until: step no further than the anchor that this round starts from. What only later rounds need is still held
            against the digest in its name.

    Raises:
        StateError: the first record that does not fit, or that is nowhere.
    """
    held = _Held(folders)  # before the chains: a peer that runs on writes its manifests first
    archive = _Archive(shared, folders, note, damaged)
    for torn in archive.torn:
        held.refute(torn)
    model = build("model", shared.model)
    model.initialize(shared.seed)
    like = {name: torch.empty(param.shape, device="meta") for name, param in model.named_parameters()}
    anchor = with_momentum({name: param.detach().float() for name, param in model.named_parameters()}, shared.outer)
    del model
    reducer, turns = build("reducer", shared.reducer), Turns(like)
    digest, round_ = blob_digest(encode_state(anchor)), GENESIS
    archive.compare(GENESIS, digest)
    held.compare(GENESIS, digest)
    for manifest in archive.in_order():
        if not manifest.void:
            parts = archive.payloads(manifest, reducer, like)
            outer_steps(anchor, parts, reducer, turns, shared.outer)
            digest = blob_digest(encode_state(anchor))
        round_ = RoundIndex(manifest.round + 1)
        by_manifest, by_peer = archive.compare(round_, digest), held.compare(round_, digest)
        yield Step(manifest, digest, by_manifest or by_peer, anchor)
        if round_ == until:
            break
    archive.look_at_the_rest()
    held.look_at_the_rest(damaged)
    for where in held.beyond(archive.end):
        note(f"{where}: of a round whose manifests are not here")


@dataclass(frozen=True, slots=True)
class _Torn:
    """A chain whose last line cannot be read, though it has all rounds before."""

    folder: Path
    line: str
    last: RoundIndex
    """The last round that can be read."""


class _Archive:
    """Manifests and payloads of a run, wherever they lie."""

    def __init__(self, shared: Shared, folders: Sequence[Path], note: Note, damaged: Note) -> None:
        self._note, self._damaged, self._shared = note, damaged, shared
        self._copies: dict[RoundIndex, list[tuple[Manifest, str]]] = {}
        """Round → its manifest as each peer has it, with votes of its own, and which record it is."""
        self._blobs: dict[str, list[Path]] = {}
        self._seen: set[Path] = set()
        """Blobs that were compared with their names."""
        self.torn: list[_Torn] = []
        for folder in folders:
            self._read_chain(folder / CHAIN_FILE)
            for path in sorted((folder / BLOB_FOLDER).glob("*")):
                if _BLOB.fullmatch(path.name):
                    self._blobs.setdefault(path.name, []).append(path)
        self._check_chain()

    @property
    def end(self) -> RoundIndex:
        """The round that the last manifest leads to."""
        return RoundIndex(max(self._copies) + 1)

    def in_order(self) -> Iterator[Manifest]:
        for _, copies in sorted(self._copies.items()):
            yield copies[0][0]

    def compare(self, round_: RoundIndex, anchor: Digest) -> str | None:
        """The record that says to which anchor the manifest of that round applies; raises if it is another."""
        manifest, where = self._copies.get(round_, [(None, None)])[0]
        if manifest is not None and manifest.anchor != anchor:
            raise StateError(f"{where}: applies to the anchor {manifest.anchor[:12]}, replayed: {anchor[:12]}")
        return where

    def payloads(self, manifest: Manifest, reducer: Any, like: Any) -> list[tuple[Any, float]]:
        """(payload, share) of what a manifest counts; equal payloads are read once."""
        decoded: dict[Digest, Any] = {}
        for entry in manifest.counted:
            if entry.payload not in decoded:
                decoded[entry.payload] = self._payload(entry, manifest.round, reducer, like)
        return [(decoded[entry.payload], entry.share) for entry in manifest.counted]

    def _payload(self, entry: Counted, round_: RoundIndex, reducer: Any, like: Any) -> Any:
        good, spoilt = None, None
        for path in self._blobs.get(entry.payload, []):  # every copy is looked at
            with suppress(FileNotFoundError):  # a peer that runs on makes room
                data = self._read_blob(path)
                good, spoilt = data or good, path if data is None else spoilt
        if good is not None:
            try:
                return reducer.decode(good, like)
            except MalformedError as error:
                raise StateError(f"round {round_}: the payload of {entry.peer}: {error}") from error
        if spoilt is not None:
            raise StateError(f"{spoilt}: its bytes have another digest than its name, and round {round_} counts it")
        raise StateError(
            f"round {round_}: nobody here has the payload of {entry.peer} ({entry.payload[:12]}…): peers keep the "
            "newest ones; add the folder of one that has it"
        )

    def look_at_the_rest(self) -> None:
        """At blobs that no manifest names: what did not count, and what validators told each other."""
        for path in sorted(path for copies in self._blobs.values() for path in copies if path not in self._seen):
            with suppress(FileNotFoundError):
                self._read_blob(path)

    def _read_blob(self, path: Path) -> bytes | None:
        """Its bytes; None: they are not what its name says."""
        self._seen.add(path)
        data = path.read_bytes()
        if blob_digest(data) == path.name:
            return data
        self._damaged(f"{path}: its bytes have another digest than its name; left out")
        return None

    def _read_chain(self, path: Path) -> None:
        *lines, rest = path.read_bytes().split(b"\n")
        rounds: list[RoundIndex] = []
        for number, line in enumerate(lines, 1):
            where = f"{path} line {number}"
            try:
                manifest = Manifest.from_bytes(line)
                if manifest.canonical() != line:
                    raise MalformedError("not in its canonical form")
            except MalformedError as error:
                if number == len(lines) and not rest:
                    self._leave_out(path, f"{where}: {error}", rounds)
                    return
                raise StateError(f"{where}: {error}") from error
            copies = self._copies.setdefault(manifest.round, [])
            copies.append((manifest, where))
            known, elsewhere = copies[0]
            if known.digest() != manifest.digest():
                raise StateError(f"{where}: another manifest of round {manifest.round} than {elsewhere}")
            rounds.append(manifest.round)
        if rest:
            self._leave_out(path, f"{path} line {len(lines) + 1}: torn", rounds)

    def _leave_out(self, path: Path, line: str, rounds: list[RoundIndex]) -> None:
        """The last line, as a crash may leave it."""
        self._note(f"{line}; the last line, as a crash may leave it: left out")
        if rounds == list(range(len(rounds))):
            self.torn.append(_Torn(path.parent, line, RoundIndex(len(rounds) - 1)))

    def _check_chain(self) -> None:
        """In order: who may have signed a manifest follows from those before it."""
        previous, charter = None, Charter(self._shared.run, self._shared.terms())
        for number, round_ in enumerate(sorted(self._copies)):
            if round_ != number:
                raise StateError(f"no manifest of round {number}: replay needs all from the genesis on")
            for manifest, where in self._copies[round_]:
                try:
                    validators = charter.behind(manifest).validators
                    check_manifest(manifest, run=self._shared.run, validators=validators, previous=previous)
                    check_final(manifest, validators)
                except (MalformedError, SignatureInvalidError) as error:
                    raise StateError(f"{where}: {error}") from error
            previous = self._copies[round_][0][0]
            charter.admit(previous)
        if previous is None:
            raise StateError(f"no manifest of round {GENESIS}: the run has not begun")


class _Held:
    """What peers hold: anchors by round, as `state.json` says and as the files are; and files that are theirs alone."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._named: dict[RoundIndex, list[tuple[str, Digest]]] = {}
        self._files: dict[RoundIndex, list[Path]] = {}
        self._holds: dict[Path, RoundIndex] = {}
        self._rest: set[Path] = set()
        """Files that no replayed anchor was compared with."""
        for folder in folders:
            files = folder / STATE_FOLDER / "files"
            for path in sorted(files.glob("*.bin")):
                self._rest.add(path)
                if found := _ANCHOR.fullmatch(path.name):
                    self._files.setdefault(RoundIndex(int(found[1])), []).append(path)
            for name in META_FILES:
                self._read_meta(folder / STATE_FOLDER / name, files)

    def _read_meta(self, path: Path, files: Path) -> None:
        if not path.is_file():
            return
        try:
            meta = StateMeta.from_bytes(path.read_bytes())
        except MalformedError as error:
            raise StateError(f"{path}: {error}") from error
        for name in sorted(meta.files()):
            # A peer that runs on drops files, but only once `state.json` names others.
            size = (files / name).stat().st_size if (files / name).is_file() else None
            if (size is None or size != meta.sizes.get(name, size)) and path.read_bytes() == meta.canonical():
                raise StateError(f"{path}: names {name}, which is not there as it says")
        holder = path.parent.parent
        self._holds[holder] = max(meta.round, self._holds.get(holder, GENESIS))
        self._named.setdefault(meta.round, []).append((str(path), meta.anchor))
        self._files.setdefault(meta.round, []).append(files / meta.anchor_file)

    def compare(self, round_: RoundIndex, anchor: Digest) -> str | None:
        """A record that names this anchor; raises if one names another."""
        witness = None
        for where, named in self._named.get(round_, []):
            if named != anchor:
                raise StateError(f"{where}: holds another anchor of round {round_} than was replayed")
            witness = where
        for path in self._files.get(round_, []):
            self._rest.discard(path)
            with suppress(FileNotFoundError):  # a peer that runs on drops old ones
                if Table.of_file(path).digest != anchor:
                    raise StateError(f"{path}: another anchor of round {round_} than was replayed")
                witness = str(path)
        return witness

    def refute(self, torn: _Torn) -> None:
        """A manifest is on disk before the anchor that it leads to: who holds that wrote the whole line."""
        holds = self._holds.get(torn.folder, GENESIS)
        if holds > torn.last + 1:
            raise StateError(f"{torn.line}; no crash left it so: this peer holds the anchor of round {holds} behind it")

    def look_at_the_rest(self, damaged: Note) -> None:
        """At residuals and payloads that are still to be settled, and at anchors of rounds that were not replayed."""
        for path in sorted(self._rest):
            with suppress(FileNotFoundError):  # as above
                if not fits(path.name, Table.of_file(path).digest):
                    damaged(f"{path}: its bytes have another digest than its name")

    def beyond(self, round_: RoundIndex) -> list[str]:
        """Records of later rounds."""
        return [where for later, found in sorted(self._named.items()) if later > round_ for where, _ in found]
