"""The audit: a run replays from its records, and whatever was changed in them is found and named."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from builder import Swarm
from test_average import AVERAGE

from elastic.config import Shared
from elastic.errors import StateError
from elastic.exchange.blobs.store import BLOB_FOLDER
from elastic.messages import Manifest
from elastic.replay import peer_folders, replay
from elastic.state.chain import CHAIN_FILE
from elastic.wire.tree import blob_digest


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


async def recorded(
    folder: Path,
    settings: dict[str, Any] | None = None,
    names: Sequence[str] = ("ann", "bob"),
    deciding: int = 1,
    crash_at: str | None = None,
) -> tuple[Shared, str]:
    """A finished run of these peers as their disks show it; its settings, and the anchor it came to.

    Where it does not finish, as the last of them dies there, the anchor is the first one's.
    """
    async with Swarm(folder, *names, validators=names[:deciding], rounds=3) as swarm:
        swarm.shared = swarm.shared.model_validate({**swarm.shared.model_dump(), **(settings or {})})
        swarm[names[-1]].crash_at = crash_at
        swarm.start()
        await swarm.finish()
        for node in swarm.nodes.values():
            (node.directory / BLOB_FOLDER).mkdir()
            for manifest in swarm.check_chain(node.name):
                for entry in manifest.counted:
                    payload = node.peer.exchange.held(entry.payload)
                    (node.directory / BLOB_FOLDER / entry.payload).write_bytes(payload)
        (anchor,) = swarm.anchors(*names[: -1 if crash_at else None])
        return swarm.shared, anchor


@pytest.mark.parametrize("settings", [{}, AVERAGE])
async def test_a_run_replays_from_its_records_to_the_last_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    # given
    shared, anchor = await recorded(tmp_path, settings)
    # when
    steps = list(replay(shared, peer_folders(tmp_path)))
    # then
    assert [step.manifest.round for step in steps] == [0, 1, 2, 3]
    assert steps[-1].anchor == anchor == blob_digest(steps[-1].state())
    assert steps[0].witness and "line 2" in steps[0].witness and steps[-1].witness
    # and from the records of one of them alone
    assert [step.anchor for step in replay(shared, peer_folders(tmp_path / "bob"))] == [s.anchor for s in steps]


async def test_each_copy_of_a_manifest_has_votes_of_its_own_and_all_are_checked(tmp_path: Path) -> None:
    # given peers that saw different quorums
    shared, anchor = await recorded(tmp_path, names=("ann", "bob", "cyd", "dan"), deciding=4)
    chains = [(path / CHAIN_FILE).read_bytes() for path in peer_folders(tmp_path)]
    assert len(set(chains)) > 1
    steps = list(replay(shared, peer_folders(tmp_path)))
    assert steps[-1].anchor == anchor
    # when one copy has a vote that is another's
    path = tmp_path / "dan" / CHAIN_FILE
    manifest = Manifest.from_bytes(path.read_bytes().splitlines()[1])
    assert manifest.finality is not None
    voters = manifest.finality.signatures
    swapped = dict(zip(voters, reversed(list(voters.values())), strict=True))
    forged = manifest.model_copy(update={"finality": manifest.finality.model_copy(update={"signatures": swapped})})
    path.write_bytes(path.read_bytes().replace(manifest.canonical(), forged.canonical()))
    # then
    with pytest.raises(StateError, match=r"dan/chain.jsonl line 2: signature of"):
        list(replay(shared, peer_folders(tmp_path)))


async def test_one_flipped_bit_is_named_wherever_it_is(tmp_path: Path) -> None:
    # given the records of one peer alone
    shared, _ = await recorded(tmp_path)
    records = files_of(tmp_path / "bob")
    assert {path.parent.name for path in records} == {"bob", "state", "files", BLOB_FOLDER}
    assert any(path.name.startswith("residual") for path in records)
    rng = random.Random(4)
    for path in records:
        whole = path.read_bytes()
        for _ in range(6):
            # when
            spoilt, place = bytearray(whole), rng.randrange(len(whole))
            spoilt[place] ^= 1 << rng.randrange(8)
            path.write_bytes(spoilt)
            # then an error, or a note if it is what a crash may leave or is bob's alone, has its name
            notes = list[str]()
            try:
                list(replay(shared, [tmp_path / "bob"], notes.append, notes.append))
            except StateError as error:
                notes.append(str(error))
            assert any(str(path) in line for line in notes), f"{path} byte {place}: {notes}"
        path.write_bytes(whole)
    assert len(list(replay(shared, [tmp_path / "bob"]))) == 4


async def test_no_bit_of_the_last_manifest_can_be_flipped_unseen(tmp_path: Path) -> None:
    # given a chain whose last line led to an anchor that the peer holds: no crash can have torn it
    shared, _ = await recorded(tmp_path)
    path = tmp_path / "bob" / CHAIN_FILE
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for place in [*range(last, len(whole), 11), len(whole) - 1]:
        # when
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        # then
        with pytest.raises(StateError, match=r"bob/chain\.jsonl line 4"):
            list(replay(shared, [tmp_path / "bob"]))
        with pytest.raises(StateError, match=r"bob/chain\.jsonl line 4"):
            list(replay(shared, peer_folders(tmp_path)))


@pytest.mark.parametrize("name", ["ann", "bob"])
async def test_a_spoilt_payload_that_another_peer_has_whole_is_only_noted(tmp_path: Path, name: str) -> None:
    # given
    shared, anchor = await recorded(tmp_path)
    spoilt = next(iter(sorted((tmp_path / name / BLOB_FOLDER).iterdir())))
    spoilt.write_bytes(b"torn")
    # when
    notes = list[str]()
    steps = list(replay(shared, peer_folders(tmp_path), damaged=notes.append))
    # then
    assert steps[-1].anchor == anchor and len(notes) == 1 and str(spoilt) in notes[0]


async def test_a_spoilt_blob_that_no_manifest_names_is_noted_too(tmp_path: Path) -> None:
    # given what validators told each other
    shared, anchor = await recorded(tmp_path)
    data = b'{"headers":[]}'
    path = tmp_path / "bob" / BLOB_FOLDER / blob_digest(data)
    path.write_bytes(data)
    damaged: list[str] = []
    assert list(replay(shared, peer_folders(tmp_path), damaged=damaged.append))[-1].anchor == anchor
    assert damaged == []
    # when one bit of it is flipped
    path.write_bytes(data.replace(b"h", b"i"))
    list(replay(shared, peer_folders(tmp_path), damaged=damaged.append))
    assert damaged == [f"{path}: its bytes have another digest than its name; left out"]


@pytest.mark.parametrize("kind", ["residual", "payload"])
async def test_what_is_a_peers_alone_is_held_against_its_name(tmp_path: Path, kind: str) -> None:
    # given a peer that died with a contribution to be settled
    shared, _ = await recorded(tmp_path, crash_at="agree 2")
    (path,) = (tmp_path / "bob" / "state" / "files").glob(f"{kind}-*")
    damaged: list[str] = []
    steps = list(replay(shared, peer_folders(tmp_path), damaged=damaged.append))
    assert damaged == []
    # when one bit of it is flipped
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(data)
    # then that is told, and the run replays
    again = list(replay(shared, peer_folders(tmp_path), damaged=damaged.append))
    assert damaged == [f"{path}: its bytes have another digest than its name"]
    assert [step.anchor for step in again] == [step.anchor for step in steps]


@pytest.mark.parametrize("where", [BLOB_FOLDER, "state/files"])
async def test_who_wants_an_early_anchor_is_told_of_later_damage_too(tmp_path: Path, where: str) -> None:
    # given
    shared, anchor = await recorded(tmp_path)
    damaged: list[str] = []
    steps = list(replay(shared, [tmp_path / "bob"], damaged.append, damaged.append, until=2))
    assert [step.manifest.round for step in steps] == [0, 1] and steps[-1].anchor != anchor and damaged == []
    # when a payload that the last round counts, or the anchor that it led to, has another bit
    last = Manifest.from_bytes((tmp_path / "bob" / CHAIN_FILE).read_bytes().splitlines()[-1])
    name = last.counted[0].payload if where == BLOB_FOLDER else f"anchor-{last.round + 1:08d}-{anchor[:12]}.bin"
    path = tmp_path / "bob" / where / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(data)
    # then
    again = list(replay(shared, [tmp_path / "bob"], damaged=damaged.append, until=2))
    assert [step.anchor for step in again] == [step.anchor for step in steps]
    assert len(damaged) == 1 and damaged[0].startswith(f"{path}: its bytes have another digest than its name")


async def test_another_outer_step_is_found_at_once(tmp_path: Path) -> None:
    # given a run file that was changed afterwards
    shared, _ = await recorded(tmp_path)
    changed = shared.model_copy(update={"outer": shared.outer.model_copy(update={"learning_rate": 0.5})})
    # when
    steps = replay(changed, peer_folders(tmp_path))
    # then the first round does not end where the next one begins
    assert next(steps).manifest.round == 0
    with pytest.raises(StateError, match=r"line 3: applies to the anchor"):
        next(steps)


async def test_what_is_missing_is_named(tmp_path: Path) -> None:
    # given
    shared, _ = await recorded(tmp_path)
    bob = tmp_path / "bob"
    chain = (bob / "chain.jsonl").read_bytes().splitlines(keepends=True)
    # when a manifest is gone
    (bob / "chain.jsonl").write_bytes(b"".join(chain[:1] + chain[2:]))
    # then
    with pytest.raises(StateError, match="no manifest of round 1"):
        list(replay(shared, [bob]))
    # but another peer has it
    assert len(list(replay(shared, peer_folders(tmp_path)))) == 4
    # when a payload is gone
    (bob / "chain.jsonl").write_bytes(b"".join(chain))
    next((bob / BLOB_FOLDER).iterdir()).unlink()
    # then
    with pytest.raises(StateError, match="nobody here has the payload"):
        list(replay(shared, [bob]))


async def test_a_torn_line_is_left_out_and_told(tmp_path: Path) -> None:
    # given a crash in the middle of a line, before anything that follows from it was written
    shared, _ = await recorded(tmp_path)
    bob, notes = tmp_path / "bob", list[str]()
    chain = (bob / "chain.jsonl").read_bytes().splitlines(keepends=True)
    (bob / "chain.jsonl").write_bytes(b"".join(chain[:3]) + chain[3][:50])
    for path in (bob / "state").rglob("*.*"):
        path.unlink()
    # when / then
    assert [step.manifest.round for step in replay(shared, [bob], notes.append)] == [0, 1, 2]
    assert "torn" in notes[0]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="neither a peer's state directory nor a folder of them"):
        peer_folders(tmp_path)
