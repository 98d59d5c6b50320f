"""The devnet's bytes are the chain's: pinned to what the real runtime's metadata, spec 461, makes of the same."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bittensor_core")

import bittensor_core as core

from incentives.devnet.codec import Codec
from incentives.devnet.metadata import metadata
from incentives.devnet.scale import compact, fields

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "golden_spec461.json").read_text())


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(metadata(), 461, 1)


@pytest.mark.parametrize("case", GOLDEN["calls"], ids=lambda case: case["call"])
def test_a_call_has_the_bytes_of_the_real_runtime(codec: Codec, case: dict[str, Any]) -> None:
    assert codec.compose(case["pallet"], case["call"], case["args"]).hex() == case["hex"]


@pytest.mark.parametrize("case", GOLDEN["storage_keys"], ids=lambda case: case["item"])
def test_a_storage_key_is_that_of_the_real_runtime(codec: Codec, case: dict[str, Any]) -> None:
    assert codec.key(case["pallet"], case["item"], case["params"]).hex() == case["hex"]


def test_the_metadata_is_version_15_and_names_the_signed_extensions_in_order() -> None:
    runtime = core.Runtime(metadata(slot_ms=250), 461, 1, 42)
    assert runtime.is_v15
    assert runtime.constant("Aura", "SlotDuration") == 250
    assert runtime.signed_extension_identifiers()[4:6] == ["CheckMortality", "CheckNonce"]


def test_an_older_runtime_lacks_an_item() -> None:
    old = Codec(metadata(without=frozenset({"SubnetEpochConsensus"})), 460, 1)
    assert not old.has_item("SubtensorModule", "SubnetEpochConsensus")
    assert old.has_item("SubtensorModule", "Tempo")


@pytest.mark.parametrize("number", [0, 63, 64, 2**14 - 1, 2**14, 2**30 - 1, 2**30, 2**64])
def test_compact_numbers_are_those_of_the_codec(codec: Codec, number: int) -> None:
    call = codec.compose("Timestamp", "set", {"now": min(number, 2**64 - 1)})
    assert call[2:] == compact(min(number, 2**64 - 1))


def test_fields_are_cut_outside_brackets_only() -> None:
    assert fields("a: Vec<(u16,u16)>, b: [u8;4]") == [("a", "Vec<(u16,u16)>"), ("b", "[u8;4]")]
