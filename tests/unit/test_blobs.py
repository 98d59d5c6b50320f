"""The blobs a peer serves, across its lives."""

from pathlib import Path

from elastic.config import RoundConfig
from elastic.exchange.blobs import BlobStore
from elastic.exchange.identity_validator import MAX_RECORD_BYTES
from elastic.messages import NO_DIGEST, Counted, Manifest, PeerId, RoundIndex
from elastic.wire.signing import Identity
from elastic.wire.tree import blob_digest


def test_what_was_provided_is_served_by_the_next_life(tmp_path: Path) -> None:
    # given a store that was left, with a file that a crash spoilt and one that it left half written
    digest = BlobStore(tmp_path).add(b"payload")
    spoilt = tmp_path / blob_digest(b"other")
    spoilt.write_bytes(b"othe")
    (tmp_path / f"{digest}.{'0' * 16}.tmp").write_bytes(b"pay")
    # when the peer starts again
    store = BlobStore(tmp_path)
    # then it has the payload, does not vouch for the spoilt one, and the half is gone
    assert store.read(digest) == b"payload"
    assert store.read(blob_digest(b"other")) is None
    assert not list(tmp_path.glob("*.tmp"))


def test_room_is_made_for_what_is_new_from_what_is_old(tmp_path: Path) -> None:
    # given a store with room for two
    store = BlobStore(tmp_path, max_bytes=8)
    digests = [store.add(bytes([number]) * 4) for number in range(3)]
    # then the oldest is gone, in this life and the next
    assert [store.read(digest) is not None for digest in digests] == [False, True, True]
    assert BlobStore(tmp_path, max_bytes=8).read(digests[0]) is None


def test_the_largest_manifest_fits_into_a_record() -> None:
    # given as many peers as a run file allows, and the longest names and numbers
    peers = sorted(Identity.generate().peer for _ in range(RoundConfig.model_fields["max_peers"].default))
    identity = Identity.generate()
    counted = tuple(
        Counted(peer=PeerId(peer), payload=blob_digest(peer.encode()), size_bytes=2**53, share=1 / 3 / len(peers))
        for peer in peers
    )
    manifest = Manifest(
        run="r" * 64, round=RoundIndex(2**40), previous=NO_DIGEST, anchor=NO_DIGEST, counted=counted,
        roster=tuple(peers), proposer=identity.peer,
    )  # fmt: skip
    # then the signed manifest, and the DHT's signature around it, fit
    assert len(identity.sign(manifest).canonical()) < MAX_RECORD_BYTES - 512
