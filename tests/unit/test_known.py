"""What a peer remembers of the network from one life to the next."""

from pathlib import Path

import pytest

from elastic.exchange.known import MAX_ADDRESSES, MAX_PEERS, Known
from elastic.messages import PeerCard, PeerId, PeerStage, RoundIndex, digest_of
from elastic.wire.signing import Identity

ME = Identity.generate().peer
ANN, BOB = (Identity.generate().peer for _ in range(2))


def card(peer: PeerId, *addresses: str) -> PeerCard:
    return PeerCard(
        peer=peer, run="test", shared=digest_of(b""), name="", stage=PeerStage.READY, addresses=addresses,
        round=RoundIndex(0),
    )  # fmt: skip


def at(peer: PeerId, port: int = 4001) -> str:
    return f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}"


def test_a_second_life_knows_the_port_and_the_peers_of_the_first(tmp_path: Path) -> None:
    # given
    first = Known(tmp_path / "known.json")
    first.listens(at(ME, 4242))
    # when
    news = first.meet([card(ANN, at(ANN)), card(ME, at(ME))], but=ME)
    # then
    second = Known(tmp_path / "known.json")
    assert news
    assert second.port == 4242
    assert [str(entry) for entry in second.entries()] == [at(ANN)]


def test_an_address_that_changed_replaces_the_old_one_and_a_peer_that_left_stays_known(tmp_path: Path) -> None:
    # given
    known = Known(tmp_path / "known.json")
    known.meet([card(ANN, at(ANN)), card(BOB, at(BOB))], but=ME)
    # when
    assert known.meet([card(BOB, at(BOB, 4002))], but=ME)
    # then
    assert {str(entry) for entry in known.entries()} == {at(ANN), at(BOB, 4002)}
    assert not known.meet([card(BOB, at(BOB, 4002))], but=ME)


def test_a_crowd_of_newcomers_does_not_push_out_who_is_there(tmp_path: Path) -> None:
    # given
    known = Known(tmp_path / "known.json")
    known.meet([card(ANN, at(ANN))], but=ME)
    crowd = [Identity.generate().peer for _ in range(2 * MAX_PEERS)]
    # when
    known.meet([*(card(peer, at(peer)) for peer in crowd), card(ANN, at(ANN))], but=ME)
    # then
    peers = [entry.peer for entry in known.entries()]
    assert len(peers) == MAX_PEERS and ANN in peers


def test_a_card_names_only_its_own_peer_and_few_addresses(tmp_path: Path) -> None:
    # given
    known = Known(tmp_path / "known.json")
    many = [at(ANN, port) for port in range(4001, 4010)]
    # when
    known.meet([card(ANN, at(BOB), *many)], but=ME)
    # then
    assert [str(entry) for entry in known.entries()] == many[:MAX_ADDRESSES]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"port": -1}', b'{"met": {"x": 3}}', b"\xff"])
def test_a_damaged_memory_is_forgotten(tmp_path: Path, damage: bytes) -> None:
    # given
    (tmp_path / "known.json").write_bytes(damage)
    # when
    known = Known(tmp_path / "known.json")
    # then
    assert (known.port, known.entries()) == (0, [])


def test_an_address_that_is_none_is_skipped(tmp_path: Path) -> None:
    # given
    (tmp_path / "known.json").write_text('{"met": {"x": ["nonsense", "' + at(ANN) + '"]}}')
    # then
    assert [str(entry) for entry in Known(tmp_path / "known.json").entries()] == [at(ANN)]


def test_without_a_file_it_remembers_for_this_life() -> None:
    known = Known(None)
    known.meet([card(ANN, at(ANN))], but=ME)
    assert len(known.entries()) == 1
