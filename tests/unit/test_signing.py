"""Identities, peer ids, and signatures over messages."""

import stat
from pathlib import Path

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.errors import ConfigError, SignatureInvalidError
from elastic.messages import Manifest, PeerId, RoundIndex, Signed, digest_of
from elastic.wire.signing import Identity, peer_id_of, public_key_of, verify, verify_bytes


class Lookalike(Signed):
    """Another type whose body has the same bytes."""

    peer: PeerId

    @property
    def signer(self) -> PeerId:
        return self.peer


class Original(Lookalike):
    pass


def manifest_of(identity: Identity) -> Manifest:
    digest = digest_of(b"x")
    return Manifest(run="r", round=RoundIndex(1), previous=digest, anchor=digest, roster=(), proposer=identity.peer)


def test_a_signed_message_verifies_and_a_changed_one_does_not() -> None:
    identity = Identity.generate()
    signed = identity.sign(manifest_of(identity))
    verify(signed)
    with pytest.raises(SignatureInvalidError):
        verify(signed.model_copy(update={"round": RoundIndex(2)}))
    with pytest.raises(SignatureInvalidError):
        verify(signed.model_copy(update={"proposer": Identity.generate().peer}))
    with pytest.raises(SignatureInvalidError):
        verify(manifest_of(identity))


def test_a_signature_on_one_type_does_not_serve_another() -> None:
    identity = Identity.generate()
    signed = identity.sign(Original(peer=identity.peer))
    verify(signed)
    with pytest.raises(SignatureInvalidError):
        verify(Lookalike(peer=identity.peer, signature=signed.signature))


def test_nobody_signs_in_anothers_name() -> None:
    with pytest.raises(SignatureInvalidError):
        Identity.generate().sign(manifest_of(Identity.generate()))


@given(data=st.binary(max_size=200), other=st.binary(max_size=200))
def test_bytes_verify_only_in_their_domain(data: bytes, other: bytes) -> None:
    identity = Identity.generate()
    signature = identity.sign_bytes("one", data)
    verify_bytes(identity.peer, "one", data, signature)
    with pytest.raises(SignatureInvalidError):
        verify_bytes(identity.peer, "two", data, signature)
    if other != data:
        with pytest.raises(SignatureInvalidError):
            verify_bytes(identity.peer, "one", other, signature)


@given(garbage=st.one_of(st.text(max_size=80), st.binary(max_size=60).map(lambda b: base58.b58encode(b).decode())))
def test_garbage_is_no_peer_id(garbage: str) -> None:
    with pytest.raises(SignatureInvalidError):
        public_key_of(PeerId(garbage))


def test_a_peer_id_contains_its_key() -> None:
    identity = Identity.generate()
    assert identity.peer.startswith("12D3Koo")
    assert peer_id_of(public_key_of(identity.peer)) == identity.peer


def test_a_key_file_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "peer.key"
    made = Identity.load_or_create(path)
    assert Identity.load_or_create(path).peer == made.peer == Identity.load(path).peer
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["peer.key"]
    assert path.read_bytes()[:4] == b"\x08\x01\x12\x40"
    assert len(path.read_bytes()) == 68


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    Identity.generate().save(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Identity.load_or_create(path)


@pytest.mark.parametrize("damaged", [slice(0, 67), slice(1, 68), slice(0, 0)])
def test_a_damaged_key_is_refused(tmp_path: Path, damaged: slice) -> None:
    path = tmp_path / "peer.key"
    Identity.generate().save(path)
    path.write_bytes(path.read_bytes()[damaged])
    with pytest.raises(ConfigError, match="not an Ed25519 key"):
        Identity.load(path)


def test_a_key_whose_halves_do_not_belong_together_is_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "peer.key", tmp_path / "other.key"
    Identity.generate().save(path)
    Identity.generate().save(other)
    path.write_bytes(path.read_bytes()[:36] + other.read_bytes()[36:])
    with pytest.raises(ConfigError, match="not an Ed25519 key"):
        Identity.load(path)


def test_a_missing_key_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Identity.load(tmp_path / "none")
