"""Proof of holding the anchor."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic.errors import StateError
from elastic.messages import NO_DIGEST, PeerId, RoundIndex, RoundPlan
from elastic.verify.proof import BLOCK_BYTES, prove

ANN, BEN = PeerId("12D3KooW" + "A" * 44), PeerId("12D3KooW" + "B" * 44)
PLAN = RoundPlan(
    run="demo", round=RoundIndex(3), previous=NO_DIGEST, anchor=NO_DIGEST, peer=ANN, roster=(ANN, BEN), slot=0,
    inner_steps=1, seed=0, train_seconds=1.0, gather_seconds=1.0,
)  # fmt: skip


def anchor(folder: Path, data: bytes, name: str = "anchor") -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def test_it_is_the_same_for_whoever_holds_the_anchor_whoever_asks(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    one, other = anchor(tmp_path, data, "one"), anchor(tmp_path, data, "other")
    assert prove(one, PLAN, BEN) == prove(other, PLAN.model_copy(update={"peer": BEN, "slot": 1}), BEN)


def test_it_is_no_use_to_another_peer_round_or_run(tmp_path: Path) -> None:
    path = anchor(tmp_path, bytes(range(256)) * 5000)
    plans = [PLAN, *(PLAN.model_copy(update=each) for each in ({"round": 4}, {"run": "x"}, {"previous": "1" * 64}))]
    assert len({prove(path, PLAN, BEN), *(prove(path, plan, ANN) for plan in plans)}) == 5


@given(size=st.integers(1, 3 * BLOCK_BYTES), data=st.data())
def test_a_small_anchor_is_proven_to_the_last_byte(
    tmp_path_factory: pytest.TempPathFactory, size: int, data: st.DataObject
) -> None:
    folder, place = tmp_path_factory.mktemp("anchor"), data.draw(st.integers(0, size - 1))
    other = bytearray(size)
    other[place] = 1
    assert prove(anchor(folder, bytes(size), "a"), PLAN, ANN) != prove(anchor(folder, bytes(other), "b"), PLAN, ANN)


def test_most_of_a_large_anchor_is_not_enough(tmp_path: Path) -> None:
    # given one who kept 99 % of a hundred megabytes
    size = 100_000 * BLOCK_BYTES
    with (tmp_path / "whole").open("wb") as file:
        file.truncate(size)
    with (tmp_path / "most").open("wb") as file:
        file.truncate(size)
        file.seek(size // 100 * 98)
        file.write(b"\1" * (size // 100))
    # then about ten of the blocks asked for are among what is missing
    assert prove(str(tmp_path / "whole"), PLAN, ANN) != prove(str(tmp_path / "most"), PLAN, ANN)


@pytest.mark.parametrize("data", [None, b""])
def test_an_anchor_that_cannot_be_read_is_our_own_fault(tmp_path: Path, data: bytes | None) -> None:
    path = str(tmp_path / "anchor") if data is None else anchor(tmp_path, data)
    with pytest.raises(StateError, match="anchor cannot be read"):
        prove(path, PLAN, ANN)
