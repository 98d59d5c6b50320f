"""The audit: a run replays from its records, and whatever was changed in them is found and named."""

import random
from pathlib import Path
from typing import Any

import pytest
from builder import Swarm
from test_average import AVERAGE

from elastic.config import Shared
from elastic.errors import StateError
from elastic.messages import digest_of
from elastic.replay import BLOBS, peer_folders, replay


def files_of(folder: Path) -> list[Path]:
    """All records but residuals, which are nobody else's business and have no digest."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("residual"))


async def recorded(folder: Path, settings: dict[str, Any] | None = None) -> tuple[Shared, str]:
    """A finished run of two peers as their disks show it; its settings, and the anchor it came to."""
    async with Swarm(folder, "ann", "bob", rounds=3) as swarm:
        swarm.shared = swarm.shared.model_validate({**swarm.shared.model_dump(), **(settings or {})})
        swarm.start()
        await swarm.finish()
        for node in swarm.nodes.values():
            (node.directory / BLOBS).mkdir()
            for manifest in swarm.check_chain(node.name):
                for entry in manifest.counted:
                    payload = node.peer.exchange.held(entry.payload)
                    (node.directory / BLOBS / entry.payload).write_bytes(payload)
        (anchor,) = swarm.anchors()
        return swarm.shared, anchor


@pytest.mark.parametrize("settings", [{}, AVERAGE])
async def test_a_run_replays_from_its_records_to_the_last_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    # given
    shared, anchor = await recorded(tmp_path, settings)
    # when
    steps = list(replay(shared, peer_folders(tmp_path)))
    # then
    assert [step.manifest.round for step in steps] == [0, 1, 2, 3]
    assert steps[-1].anchor == anchor == digest_of(steps[-1].state)
    # and from the records of one of them alone
    assert [step.anchor for step in replay(shared, peer_folders(tmp_path / "bob"))] == [s.anchor for s in steps]


async def test_one_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    # given
    shared, _ = await recorded(tmp_path)
    records = files_of(tmp_path)
    assert {path.parent.name for path in records} == {"ann", "bob", "state", "files", BLOBS}
    rng = random.Random(4)
    for path in records:
        whole = path.read_bytes()
        for _ in range(6):
            # when
            spoilt, place = bytearray(whole), rng.randrange(len(whole))
            spoilt[place] ^= 1 << rng.randrange(8)
            path.write_bytes(spoilt)
            # then
            with pytest.raises(StateError) as found:
                list(replay(shared, peer_folders(tmp_path)))
            assert str(tmp_path) in str(found.value), f"{path} byte {place}"
        path.write_bytes(whole)
    assert len(list(replay(shared, peer_folders(tmp_path)))) == 4


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
    next((bob / BLOBS).iterdir()).unlink()
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
