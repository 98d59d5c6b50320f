"""The DHT's record validator against signed garbage."""

import pytest
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import PeerID

from elastic.exchange.dht.identity_validator import IdentityValidator
from elastic.wire.signing import Identity

NOW = 1000.0


def record(identity: Identity, value: bytes) -> DHTRecord:
    subkey = DHTProtocol.serializer.dumps(PeerID.from_base58(identity.peer).to_bytes())
    return DHTRecord(key=b"k" * 20, subkey=subkey, value=value, expiration_time=NOW + 10)


@pytest.mark.parametrize(
    "value", [b"\xc1\xc1", b"", b"\x91", b"\xdd\xff\xff\xff\xff", b"\x91" * 3000, b"\xc7\x01\x42\x00\x00"]
)
def test_a_well_signed_value_that_hivemind_could_not_read_is_refused(value: bytes) -> None:
    # given a stranger with a valid key, and a value that no serializer wrote
    stranger = Identity.generate()
    validator = IdentityValidator(stranger, now=lambda: NOW)
    unsigned = record(stranger, value)
    # when it is signed properly
    signed = record(stranger, validator.sign_value(unsigned))
    # then it is refused all the same: whoever read it would wait for ever
    assert not IdentityValidator(Identity.generate(), now=lambda: NOW).validate(signed)


def test_a_well_signed_value_is_accepted() -> None:
    author = Identity.generate()
    value = DHTProtocol.serializer.dumps(b"body")
    signed = record(author, IdentityValidator(author, now=lambda: NOW).sign_value(record(author, value)))
    assert IdentityValidator(Identity.generate(), now=lambda: NOW).validate(signed)
