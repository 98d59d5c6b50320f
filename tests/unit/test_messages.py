"""Messages: one canonical form, and nothing but exactly that is taken from strangers."""

import inspect
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from elastic import messages, reports
from elastic.agreement import votes
from elastic.errors import MalformedError
from elastic.messages import (
    Counted,
    Digest,
    Manifest,
    Message,
    PeerCard,
    PeerId,
    PeerStage,
    RoundIndex,
    Scoreboard,
    Signed,
    Verdict,
    digest_of,
)
from elastic.reports import RoundReport

PEER, OTHER = PeerId("12D3KooW" + "A" * 44), PeerId("12D3KooW" + "B" * 44)
DIGEST = Digest("ab" * 32)

INNER = {"steps": 3, "tokens": 12, "first_loss": 5.5, "last_loss": 5.25, "mean_loss": 5.4, "seconds": 0.5}
VERDICT = {"peer": PEER, "round": 7, "rejected": "copy", "detail": "like B's"}
COUNTED = {"peer": PEER, "payload": DIGEST, "size_bytes": 10, "share": 0.5}
MEASURED = {"task": "facts", "metric": "acc", "value": 0.25, "samples": 84}
EXAMPLES: dict[str, dict[str, Any]] = {
    "PeerCard": {
        "peer": PEER, "run": "demo", "shared": DIGEST, "stage": "catching up", "round": 3, "addresses": ["/a"],
    },
    "RoundPlan": {
        "run": "demo", "round": 7, "previous": DIGEST, "anchor": DIGEST, "peer": PEER, "roster": [PEER], "slot": 0,
        "inner_steps": 3, "seed": 1, "train_seconds": 1.5, "gather_seconds": 2.0,
    },
    "InnerReport": INNER,
    "ContributionHeader": {
        "run": "demo", "round": 7, "peer": PEER, "anchor": DIGEST, "proof": DIGEST, "payload": DIGEST,
        "size_bytes": 10, "steps": 3, "tokens": 12, "loss": 5.5,
    },
    "Verdict": VERDICT,
    "Assessment": {"peer": PEER, "round": 7, "gain_assigned": 0.5, "gain_heldout": -0.5},
    "Evidence": {"verdict": VERDICT, "tokens": 12},
    "RoundEvidence": {"run": "demo", "round": 7, "peer": PEER, "evidence": [{"verdict": VERDICT}], "invitations": []},
    "Scoreboard": {"round": 7, "scores": {PEER: 0.5}},
    "SignedScoreboard": {"run": "demo", "round": 7, "peer": PEER, "scores": {PEER: 0.5}},
    "Invitation": {"run": "demo", "inviter": PEER, "number": 3, "invited": OTHER},
    "Counted": COUNTED,
    "Manifest": {
        "run": "demo", "round": 7, "previous": DIGEST, "anchor": DIGEST, "counted": [COUNTED], "roster": [PEER],
        "proposer": PEER,
    },
    "Notes": {"headers": []},
    "BlobRef": {"digest": DIGEST, "size_bytes": 10},
    "Finality": {"view": 1, "signatures": {PEER: "cd" * 64}},
    "Vote": {"run": "demo", "round": 7, "view": 1, "kind": "notarize", "manifest": DIGEST, "peer": PEER},
    "Proposal": {"run": "demo", "round": 7, "view": 1, "manifest": DIGEST, "parent": 0, "proposer": PEER},
    "Tally": {"view": 1, "kind": "void", "manifest": DIGEST, "signatures": {PEER: "cd" * 64}},
    "Ballot": {"run": "demo", "round": 7, "tallies": [], "proposals": [], "texts": []},
    "RoundReport": {
        "run": "demo", "round": 7, "peer": PEER, "name": "a", "contributed": True, "counted": False, "digest": DIGEST,
        "verdicts": {PEER: "accepted"}, "seconds": {"total": 1.5},
    },
    "PeerStatus": {"peer": PEER, "name": "a", "run": "demo", "stage": "ready", "updated": 1.5, "pid": 3},
    "Amendment": {"validators": [PEER], "incentive": None},
    "Order": {"run": "demo", "amended": 3, "amendment": {"validators": None, "incentive": "{}"}},
    "Wishes": {
        "run": "demo", "round": 7, "amended": 3, "wishes": {PEER: {"validators": [PEER], "incentive": None}},
        "names": {PEER: "a"},
    },
    "Measured": MEASURED,
    "Evaluation": {"run": "demo", "round": 7, "anchor": DIGEST, "seconds": 1.5, "results": [MEASURED]},
    "PendingMeta": {"round": 7, "inner": INNER, "payload_file": "payload-7"},
    "StateMeta": {"round": 7, "anchor": DIGEST, "anchor_file": "anchor-7.bin"},
}  # fmt: skip
"""One valid message of each type, as JSON says it."""
TYPES: dict[str, type[Message]] = {
    name: value
    for name, value in {**vars(messages), **vars(reports), **vars(votes)}.items()
    if inspect.isclass(value) and issubclass(value, Message) and value not in (Message, Signed)
}
every_type = pytest.mark.parametrize("name", sorted(TYPES))


def example(name: str, /, **changes: Any) -> Any:
    return TYPES[name].from_bytes(json.dumps(EXAMPLES[name] | changes).encode())


def test_every_message_has_an_example_here() -> None:
    assert set(EXAMPLES) == set(TYPES)


@every_type
def test_the_canonical_form_is_stable(name: str) -> None:
    message = example(name)
    once = message.canonical()
    assert TYPES[name].from_bytes(once) == message
    assert TYPES[name].from_bytes(once).canonical() == once
    assert once == orjson.dumps(json.loads(once), option=orjson.OPT_SORT_KEYS)
    assert b" " not in once.replace(b"catching up", b"").replace(b"like B's", b"")


@every_type
def test_the_order_of_keys_does_not_matter(name: str) -> None:
    turned = dict(reversed(EXAMPLES[name].items()))
    assert TYPES[name].from_bytes(json.dumps(turned).encode()).canonical() == example(name).canonical()


@every_type
def test_messages_are_frozen(name: str) -> None:
    message = example(name)
    field = next(iter(TYPES[name].model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(message, field, getattr(message, field))


@every_type
def test_a_key_too_many_or_too_few_is_malformed(name: str) -> None:
    with pytest.raises(MalformedError, match=f"^{name}: surprise: Extra inputs"):
        example(name, surprise=1)
    required = next(field for field, info in TYPES[name].model_fields.items() if info.is_required())
    less = {key: value for key, value in EXAMPLES[name].items() if key != required}
    with pytest.raises(MalformedError, match=f"^{name}: {required}: Field required"):
        TYPES[name].from_bytes(json.dumps(less).encode())


@every_type
def test_no_value_is_taken_for_another_type(name: str) -> None:
    for field, value in EXAMPLES[name].items():
        wrong = str(value) if isinstance(value, int | float) else 17
        with pytest.raises(MalformedError, match=f"^{name}: {field}"):
            example(name, **{field: wrong})


@every_type
@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"null"])
def test_numbers_that_are_none_are_refused(name: str, value: bytes) -> None:
    for field, info in TYPES[name].model_fields.items():
        if info.annotation in (float, int) or info.annotation is RoundIndex:
            data = json.dumps(EXAMPLES[name] | {field: "HERE"}).encode().replace(b'"HERE"', value)
            with pytest.raises(MalformedError):
                TYPES[name].from_bytes(data)


def test_nan_is_refused_inside_tables_too() -> None:
    with pytest.raises(ValidationError):
        Scoreboard(round=RoundIndex(1), scores={PEER: float("nan")})
    with pytest.raises(MalformedError):
        Scoreboard.from_bytes(b'{"round":1,"scores":{"%s":NaN}}' % PEER.encode())


GARBAGE = [
    b"", b"{", b"[]", b"null", b"0", b'"x"', b"\x00", b"\xff\xfe", b"{}{}", b"{" * 100_000, b"[" * 100_000,
    b'{"a":' * 5_000, b'{"a":"' + b"x" * 1_000_000 + b'"}', b'{"round":' + b"9" * 5_000 + b"}",
    b'{"round":1e400}', b'{"peer":"\\ud800"}', b'{"peer":"\xed\xa0\x80"}', b'{"\\u0000":1}',
]  # fmt: skip


@every_type
def test_garbage_is_malformed_and_nothing_else(name: str) -> None:
    for data in GARBAGE:
        with pytest.raises(MalformedError, match=f"^{name}: "):
            TYPES[name].from_bytes(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([PEER, DIGEST]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(data=st.binary(max_size=200), name=st.sampled_from(sorted(TYPES)))
def test_any_bytes_are_malformed(data: bytes, name: str) -> None:
    with pytest.raises(MalformedError):
        TYPES[name].from_bytes(data)


@given(name=st.sampled_from(sorted(TYPES)), chosen=st.data())
def test_odd_json_is_a_message_or_malformed_and_a_message_keeps_its_form(name: str, chosen: st.DataObject) -> None:
    field = chosen.draw(st.sampled_from(sorted(TYPES[name].model_fields)))
    odd = EXAMPLES[name] | {field: chosen.draw(json_values)}
    try:
        message = TYPES[name].from_bytes(json.dumps(odd).encode())
    except MalformedError as error:
        assert "\n" not in str(error)
        return
    assert TYPES[name].from_bytes(message.canonical()) == message


@pytest.mark.parametrize(
    ("name", "field", "most", "item"),
    [
        ("PeerCard", "addresses", 16, "/ip4/1.2.3.4/tcp/1"),
        ("Manifest", "roster", 1024, PEER),
        ("Manifest", "counted", 1024, COUNTED),
    ],
)
def test_what_strangers_send_is_bounded_in_length(name: str, field: str, most: int, item: Any) -> None:
    example(name, **{field: [item] * most})
    with pytest.raises(MalformedError, match="at most"):
        example(name, **{field: [item] * (most + 1)})


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("PeerCard", "addresses", ["/" * 257]),
        ("PeerCard", "name", "x" * 65),
        ("PeerCard", "run", "x" * 65),
        ("PeerCard", "run", "-x"),
        ("PeerCard", "protocol", 10**30),
        ("PeerCard", "protocol", -1),
        ("PeerCard", "round", 2**40 + 1),
        ("PeerCard", "peer", "O" * 52),
        ("PeerCard", "peer", "1" * 65),
        ("PeerCard", "shared", DIGEST + "\n"),
        ("PeerCard", "shared", DIGEST.upper()),
        ("Verdict", "detail", "x" * 301),
        ("Counted", "share", 0.0),
        ("Counted", "share", 1.5),
        ("Counted", "size_bytes", -1),
        ("Counted", "size_bytes", 2**53 + 1),
        ("ContributionHeader", "tokens", 2**64),
        ("ContributionHeader", "signature", "ab"),
        ("StateMeta", "anchor_file", "../anchor"),
        ("StateMeta", "anchor_file", "/anchor"),
        ("StateMeta", "anchor_file", ".."),
    ],
)
def test_values_out_of_bounds_are_malformed(name: str, field: str, value: Any) -> None:
    with pytest.raises(MalformedError, match=f"^{name}: {field}"):
        example(name, **{field: value})


def test_the_signature_is_no_part_of_what_is_signed_nor_of_the_digest() -> None:
    manifest: Manifest = example("Manifest")
    signed = manifest.model_copy(update={"signature": "ab" * 64})
    assert signed.body() == manifest.body()
    assert signed.digest() == manifest.digest()
    assert signed.canonical() != manifest.canonical()


def test_a_manifest_knows_who_counts() -> None:
    manifest: Manifest = example("Manifest")
    assert manifest.counts(PEER)
    assert not manifest.counts(OTHER)
    assert all(manifest.applies(entry.payload) for entry in manifest.counted)
    assert not manifest.applies(messages.NO_DIGEST)
    assert not manifest.void
    assert example("Manifest", counted=[]).void


def test_signed_messages_name_their_signer() -> None:
    assert example("Manifest").signer == PEER
    assert example("ContributionHeader").signer == PEER
    with pytest.raises(NotImplementedError):
        _ = Signed().signer


def test_a_verdict_accepts_unless_it_names_a_reason() -> None:
    assert Verdict(peer=PEER, round=RoundIndex(1)).accepted
    assert not example("Verdict").accepted


def test_a_state_names_its_files() -> None:
    pending = EXAMPLES["PendingMeta"]
    meta = example("StateMeta", residual_file="residual-7", pending=pending)
    assert meta.files() == {"anchor-7.bin", "residual-7", "payload-7"}
    assert example("StateMeta").files() == {"anchor-7.bin"}


def test_a_round_report_is_one_line_of_json_with_the_documented_keys() -> None:
    line = RoundReport.canonical(example("RoundReport"))
    assert b"\n" not in line
    keys = {"round", "peer", "loss", "tokens", "bytes_out", "bytes_in", "digest", "verdicts", "seconds"}
    assert keys <= set(json.loads(line))


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("PeerCard", "dcf19e44f2c9e73b4ebfdf99fccefca66c4ce97684b4b0dd09fed640165e3000"),
        ("ContributionHeader", "0f4326207085fe33c128df8fdde6e38cd3dbb6d683de68abe4ee02d425a89c6d"),
        ("Manifest", "5956aa5b6936e1cf914e10a42c05b2e60ad77e14bbd6e60072f3624227b4ae6a"),
    ],
)
def test_digests_do_not_change_between_versions(name: str, digest: str) -> None:
    """If one does, peers of two versions part: raise PROTOCOL_VERSION with it."""
    assert digest_of(example(name).canonical()) == digest


def test_digest_of_is_sha_256() -> None:
    assert digest_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_of(memoryview(b"abc")) == digest_of(bytearray(b"abc")) == digest_of(b"abc")


def test_a_card_is_made_of_values_not_of_strings_that_look_like_them() -> None:
    with pytest.raises(ValidationError):
        PeerCard(peer=PEER, run="demo", shared=DIGEST, stage="ready", round=RoundIndex(1))  # type: ignore[arg-type]
    card = PeerCard(peer=PEER, run="demo", shared=DIGEST, stage=PeerStage.READY, round=RoundIndex(1))
    assert Counted(peer=card.peer, payload=DIGEST, size_bytes=1, share=1).share == 1.0
