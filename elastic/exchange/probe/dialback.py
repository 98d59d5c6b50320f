"""Who answers at an address? A TCP connection of its own, and the first part of libp2p's handshake over TLS.

libp2p itself would use the connection that it has to that peer, which proves nothing. Here nothing is reused and no
handshake is finished: we connect, and wait for the greeting that every libp2p listener sends first. Whoever does not
send it gets no byte from us. Then the listener shows a certificate that its peer id has signed.
"""

from __future__ import annotations

import asyncio
import ssl

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from elastic.messages import PeerId
from elastic.wire.signing import peer_id_of

GREETING = b"\x13/multistream/1.0.0\n"
_TLS = b"\x0b/tls/1.0.0\n"
_BUFFER_BYTES = 4096
_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
"""libp2p's: holds SEQUENCE {OCTET STRING public key as protobuf, OCTET STRING signature}."""
_KEY_HEAD, _SIGNATURE_HEAD = bytes.fromhex("3068042408011220"), bytes.fromhex("0440")
"""What stands before the 32 bytes of an Ed25519 key, and before the 64 of its signature."""
_SIGNED_DATA = b"libp2p-tls-handshake:"
_MALFORMED = (
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What reading a hostile certificate raises beside ValueError."""


class NotLibp2pError(Exception):
    """Somebody answered who is no libp2p peer with an Ed25519 key."""


async def who_answers(ip: str, port: int, seconds: float) -> PeerId:
    """Which peer listens there.

    Raises:
        ConnectionRefusedError: nobody.
        OSError: no way there within these seconds.
        NotLibp2pError: something else does.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    async with asyncio.timeout_at(deadline):
        reader, writer = await asyncio.open_connection(ip, port, limit=_BUFFER_BYTES)
    try:
        async with asyncio.timeout_at(deadline):
            return await _shake_hands(reader, writer)
    except (OSError, EOFError) as error:
        raise NotLibp2pError(str(error) or "it says nothing") from error
    finally:
        writer.transport.abort()


async def _shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> PeerId:
    """As far as the listener's certificate; raises NotLibp2pError, OSError, EOFError."""
    if await reader.readexactly(len(GREETING)) != GREETING:
        raise NotLibp2pError("no greeting")
    writer.write(GREETING + _TLS)
    if await reader.readexactly(len(_TLS)) != _TLS:
        raise NotLibp2pError("no TLS")
    await writer.start_tls(_any_certificate())
    return signer_of(writer.get_extra_info("ssl_object").getpeercert(True))


def signer_of(certificate: bytes) -> PeerId:
    """The peer that signed a certificate (DER) whose key was proved by the handshake.

    Raises:
        NotLibp2pError: none did.
    """
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        extension = parsed.extensions.get_extension_for_oid(_EXTENSION).value
        proved = parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, *_MALFORMED) as error:
        raise NotLibp2pError(f"no certificate of libp2p: {error}") from error
    value = extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""
    head, key, middle, signature = value[:8], value[8:40], value[40:42], value[42:]
    if (head, middle, len(signature)) != (_KEY_HEAD, _SIGNATURE_HEAD, 64):
        raise NotLibp2pError("no Ed25519 key")
    signer = Ed25519PublicKey.from_public_bytes(key)
    try:
        signer.verify(signature, _SIGNED_DATA + proved)
    except InvalidSignature as error:
        raise NotLibp2pError("the certificate's signature does not verify") from error
    return peer_id_of(signer)


def _any_certificate() -> ssl.SSLContext:
    """TLS 1.3 without authorities: peers sign their certificates themselves."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
