"""Who said it: Ed25519 keys, libp2p peer ids, signatures over messages.

A peer id is the identity multihash of the public key, so it *contains* the key: there is nothing to look up,
and the peer id that libp2p authenticates on a connection is the one that signs messages. The key file is the
one that p2pd reads.
"""

from __future__ import annotations

import os
import secrets
import stat
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from elastic.errors import ConfigError, SignatureInvalidError
from elastic.messages import PROTOCOL_VERSION, PeerId, Signed

SignedT = TypeVar("SignedT", bound=Signed)

SIGNATURE_BYTES = 64
_KEY_FILE_PREFIX = b"\x08\x01\x12\x40"
"""Protobuf of libp2p's PrivateKey{type: Ed25519, data: 64 bytes}; 32 private and 32 public bytes follow."""
_PEER_ID_PREFIX = bytes.fromhex("002408011220")
"""Identity multihash of 36 bytes holding the protobuf PublicKey{type: Ed25519, data: 32 bytes}."""
_KEY_BYTES = 32


class Identity:
    """A peer's private key and the peer id that follows from it."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.peer: PeerId = peer_id_of(private_key.public_key())

    @classmethod
    def generate(cls) -> Identity:
        """A new random identity, not on disk."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a key file.

        Raises:
            ConfigError: missing, readable by others, or not an Ed25519 key in libp2p's format.
        """
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: the key cannot be read: {error.strerror}") from error
        if mode & 0o077:
            raise ConfigError(f"{path}: others may read this private key; run: chmod 600 {path}")
        return cls(_parse_key_file(data, path))

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Read a key file, or make one, readable by this user only, if there is none.

        Raises:
            ConfigError: see `load`, or the file cannot be written.
        """
        if not path.exists():
            try:
                cls.generate().save(path)
            except OSError as error:
                raise ConfigError(f"{path}: the key cannot be written: {error.strerror}") from error
        return cls.load(path)

    def save(self, path: Path) -> None:
        """Write the key file, complete or not at all, mode 0600."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(
                _KEY_FILE_PREFIX
                + self._private_key.private_bytes_raw()
                + self._private_key.public_key().public_bytes_raw()
            )
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)

    def sign(self, message: SignedT) -> SignedT:
        """The same message with our signature over its type and body.

        Raises:
            SignatureInvalidError: the message names another signer than us.
        """
        if message.signer != self.peer:
            raise SignatureInvalidError(f"{type(message).__name__} is {message.signer}'s to sign, not {self.peer}'s")
        signature = self.sign_bytes(_domain_of(message), message.body())
        return message.model_copy(update={"signature": signature.hex()})

    def sign_bytes(self, domain: str, data: bytes) -> bytes:
        """64 bytes of signature; the domain keeps a signature for one purpose from serving another."""
        return self._private_key.sign(_under_signature(domain, data))


def verify(message: Signed) -> None:
    """Check that the peer the message names signed it.

    Raises:
        SignatureInvalidError: it did not.
    """
    verify_bytes(message.signer, _domain_of(message), message.body(), bytes.fromhex(message.signature))


def verify_bytes(peer: PeerId, domain: str, data: bytes, signature: bytes) -> None:
    """Check a signature made by `Identity.sign_bytes`.

    Raises:
        SignatureInvalidError: wrong signature, or the peer id is not that of an Ed25519 key.
    """
    try:
        public_key_of(peer).verify(signature, _under_signature(domain, data))
    except InvalidSignature as error:
        raise SignatureInvalidError(f"signature of {peer} on {domain} does not verify") from error


def peer_id_of(public_key: Ed25519PublicKey) -> PeerId:
    """The libp2p peer id of a public key."""
    return PeerId(base58.b58encode(_PEER_ID_PREFIX + public_key.public_bytes_raw()).decode())


@lru_cache(maxsize=4096)
def public_key_of(peer: PeerId) -> Ed25519PublicKey:
    """The public key inside a peer id.

    Raises:
        SignatureInvalidError: not the peer id of an Ed25519 key.
    """
    try:
        raw = base58.b58decode(peer)
    except ValueError as error:
        raise SignatureInvalidError(f"{peer!r:.80} is not base58") from error
    if len(raw) != len(_PEER_ID_PREFIX) + _KEY_BYTES or not raw.startswith(_PEER_ID_PREFIX):
        raise SignatureInvalidError(f"{peer!r:.80} is not the peer id of an Ed25519 key")
    return Ed25519PublicKey.from_public_bytes(raw[len(_PEER_ID_PREFIX) :])


def _domain_of(message: Signed) -> str:
    return type(message).__name__


def _under_signature(domain: str, data: bytes) -> bytes:
    return b"elastic/%d/%s\0%s" % (PROTOCOL_VERSION, domain.encode(), data)


def _parse_key_file(data: bytes, path: Path) -> Ed25519PrivateKey:
    private, public = data[4:36], data[36:]
    if len(data) == 68 and data.startswith(_KEY_FILE_PREFIX):
        key = Ed25519PrivateKey.from_private_bytes(private)
        if key.public_key().public_bytes_raw() == public:
            return key
    raise ConfigError(f"{path}: not an Ed25519 key in libp2p's format; move it away and a new one is made")
