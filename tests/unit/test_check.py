"""How the parts of a run file go together: every mistake is one line that says what to write instead."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest

from elastic.check import check_entry, check_plugins, check_values, notes
from elastic.config import RunConfig, parse_config
from elastic.errors import ConfigError
from elastic.wire.signing import Identity

PEER = "12D3KooWCxamcUjgj3tcJJ6jRiqrBbWRjyrimfzpsyvqCduZLuSo"
ENTRY = f"/ip4/203.0.113.5/tcp/4001/p2p/{PEER}"
BPE = {"shared.data.tokenizer": "bpe", "shared.data.vocab_size": 1000}


def config(base: Path = Path("/base"), **changes: Any) -> RunConfig:
    tree: dict[str, Any] = copy.deepcopy({"shared": {"run": "demo", "agreement": {"validators": [PEER]}}})
    for dotted, value in changes.items():
        section, keys = tree, dotted.split(".")
        for key in keys[:-1]:
            section = section.setdefault(key, {})
        section[keys[-1]] = value
    return parse_config(tree, base=base)


def refused(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_values(config(**changes))
        check_plugins(config(**changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("reputatoin", 'did you mean "reputation"?'),
        ("nowhere_at_all:Mine", "(is it installed, or its folder on PYTHONPATH?)"),
        ("incentives.uniform:Unifrom", "did you mean"),
    ],
)
def test_an_incentive_that_is_accepted_and_not_there_is_a_mistake_now_and_not_in_the_middle_of_the_run(
    name: str, says: str
) -> None:
    found = refused(**{"local.incentives": [name]})
    assert found.startswith("local.incentives: ") and says in found


def test_the_defaults_go_together() -> None:
    check_values(config(**{"local.network.bootstrap": [ENTRY]}))
    check_plugins(config())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"shared.inner.batch_size": 3, "local.ray.workers": 4},
            "local.ray.workers = 4, but there are only shared.inner.batch_size = 3 sequences in a batch",
        ),
        (
            {"shared.round.min_peers": 9, "shared.round.max_peers": 8},
            "shared.round.min_peers = 9 is more than max_peers = 8; raise max_peers",
        ),
        (
            BPE,
            "shared.model has vocab_size = 256 and shared.data 1000: the text would have tokens the model does not "
            "know; write vocab_size = 1000 in [shared.model]",
        ),
        (
            {"shared.inner.sequence_length": 513},
            "shared.inner.sequence_length = 513 is more than the model takes (512); lower it, or raise "
            "max_sequence_length in [shared.model]",
        ),
        (
            {"local.exchange": {"name": "memory"}},
            'local.exchange.name = "memory" works inside one process only; write "hivemind"',
        ),
        (
            {"local.network.host": "::1"},
            'local.network.host = "::1" is not an IPv4 address of this machine; write "0.0.0.0" for all of them',
        ),
        (
            {"local.corpus": "nowhere.txt"},
            "local.corpus: there is no file /base/nowhere.txt; write the path of the text, from the run file's folder",
        ),
        (
            {"local.exchange": {"name": "hivemind", "speed": 3}},
            'exchange hivemind: unknown key "speed"; known keys: none',
        ),
        ({"shared.incentive": {"name": "reputation", "decai": 0}}, 'unknown key "decai"; did you mean "decay"?'),
    ],
)  # fmt: skip
def test_parts_that_do_not_go_together(changes: dict[str, Any], says: str) -> None:
    assert says in refused(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {**BPE, "shared.model": {"name": "llama", "vocab_size": 1000}},
        {**BPE, "shared.model": {"name": "llama", "preset": "150m"}},
        {"shared.inner.sequence_length": 1024, "shared.model": {"name": "llama", "preset": "micro"}},
        {"shared.inner.batch_size": 8, "local.ray.workers": 4},
    ],
)  # fmt: skip
def test_parts_that_do(changes: dict[str, Any]) -> None:
    check_values(config(**changes))
    check_plugins(config(**changes))


def test_a_model_that_says_nothing_of_its_sizes_is_not_judged_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "silent_model.py").write_text(
        "from pydantic import BaseModel\nclass Silent:\n    class Config(BaseModel): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    check_plugins(config(**{"shared.model": {"name": "silent_model:Silent"}, "shared.inner.sequence_length": 9999}))


@pytest.mark.parametrize("peer", [PEER[:-1], "1" * 46, "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"])
def test_what_is_no_peer_id_cannot_be_the_validator(peer: str) -> None:
    message = refused(**{"shared.agreement.validators": [peer]})
    assert message.startswith(f'shared.agreement.validators, entry 1: "{peer}" is not a peer id')
    assert "`elastic id`" in message


OTHER = Identity.generate().peer


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"entry": "listed"}, 'entry = "listed" needs members = ["12D3KooW…", …], peer ids that are in'),
        ({"members": [PEER, "abc"]}, "members, entry 2 is not a peer id, which is 52 letters and digits"),
        ({"members": [PEER, PEER[:-1]]}, f'members, entry 2: "{PEER[:-1]}" is not a peer id, which is 52 letters'),
        ({"members": [PEER, 3]}, "members, entry 2: should be a valid string (got 3)"),
        ({"members": PEER}, "members: should be a list, in [ ]"),
        ({"members": [PEER] * 1025}, "members: at most 1024 entries can be there, not 1025: leave some out"),
        ({"carried": {"abc": 0.5}}, 'carried, its key "abc" is not a peer id, which is 52 letters'),
        ({"carried": {"reputation": {PEER: 0.5}}}, 'carried, its key "reputation" is not a peer id'),
        ({"carried": {PEER: 0.5, PEER[:-1]: 0.5}}, f'carried, entry 2: "{PEER[:-1]}" is not a peer id'),
        ({"carried": {PEER: 1.5}}, f"carried.{PEER}: should be less than or equal to 1 (got 1.5)"),
        ({"carried": {PEER: {"reputation": 1}}}, f"carried.{PEER}: should be a valid number"),
        ({"carried": [PEER]}, "carried: should be a table"),
    ],
)
def test_a_mistake_in_who_gets_in_or_what_is_known_names_its_entry(settings: dict[str, Any], says: str) -> None:
    assert says in refused(**{"shared.incentive": {"name": "reputation", **settings}})
    assert says in refused(**{"shared.incentive": {"name": "subnet", "netuid": 3, "reputation": settings}})


@pytest.mark.parametrize("key", ["entry", "members", "carried"])
def test_what_belongs_into_a_table_below_is_told_so(key: str) -> None:
    message = refused(**{"shared.incentive": {"name": "subnet", "netuid": 3, key: 1}})
    assert message.endswith(f'unknown key "{key}"; did you mean "reputation.{key}"?')


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"members": [PEER]}, 'members are of no use with entry = "open"'),
        ({"entry": "listed", "members": [PEER, PEER]}, f"members names {PEER} more than once"),
        ({"entry": "invited", "members": [OTHER]}, f"the validator {PEER} is none of the members"),
    ],
)
def test_members_that_may_be_meant_otherwise_are_noted(settings: dict[str, Any], says: str) -> None:
    usual = {"local.network.bootstrap": [ENTRY]}
    assert says in "\n".join(notes(config(**usual, **{"shared.incentive": {"name": "reputation", **settings}})))
    fine = {"name": "reputation", "entry": "listed", "members": [PEER]}
    assert says not in "\n".join(notes(config(**usual, **{"shared.incentive": fine})))


GOOD = [
    ENTRY,
    f"/dns4/peer.example.org/tcp/1/p2p/{PEER}",
    f"/dns/peer.example.org/tcp/65535/p2p/{PEER}",
]
BAD = {
    "": "is not an address",
    "203.0.113.5:4001": "is not an address; expected /ip4/203.0.113.5/tcp/4001/p2p/12D3Koo…",
    f"{ENTRY}/": 'does not end in the entry point\'s "/p2p/12D3Koo…"',
    f"ip4/203.0.113.5/tcp/4001/p2p/{PEER}": "is not an address",
    f"/ipv4/203.0.113.5/tcp/4001/p2p/{PEER}": '"ipv4" cannot begin it; did you mean "ip4"?',
    f"/ip6/::1/tcp/4001/p2p/{PEER}": '"ip6" cannot begin it; did you mean "ip4"?',
    f"/onion/x/tcp/4001/p2p/{PEER}": '"onion" cannot begin it; known: ip4, dns4, dns.',
    f"/ip4/peer.example.org/tcp/4001/p2p/{PEER}": "is not an IPv4 address (a name goes after /dns4/)",
    f"/ip4/999.0.0.1/tcp/4001/p2p/{PEER}": "is not an IPv4 address",
    f"/ip4/203.0.113.5/udp/4001/p2p/{PEER}": 'expected "/tcp/" and a port',
    f"/ip4/203.0.113.5/tcp/x/p2p/{PEER}": 'expected "/tcp/" and a port',
    f"/ip4/203.0.113.5/tcp/70000/p2p/{PEER}": 'expected "/tcp/" and a port',
    f"/ip4/203.0.113.5/tcp/0/p2p/{PEER}": 'expected "/tcp/" and a port',
    "/ip4/203.0.113.5/tcp/4001": 'does not end in the entry point\'s "/p2p/12D3Koo…"',
    f"/ip4/203.0.113.5/tcp/4001/ipfs/{PEER}": 'does not end in the entry point\'s "/p2p/12D3Koo…"',
    "/ip4/203.0.113.5/tcp/4001/p2p/12D3Koo…": "is not a peer id",
    f"/ip4/203.0.113.5/tcp/4001/p2p/{PEER[:-1]}": "is not a peer id",
}


@pytest.mark.parametrize(("address", "says"), BAD.items())
def test_a_malformed_bootstrap_address_is_told_what_is_wrong_with_it(address: str, says: str) -> None:
    message = refused(**{"local.network.bootstrap": [ENTRY, address]})
    assert message.startswith(f'local.network.bootstrap: "{address}"')
    assert says in message


@pytest.mark.parametrize("address", [*GOOD, *BAD])
def test_what_passes_here_is_what_the_exchange_takes(address: str) -> None:
    from elastic.exchange.dht.bootstrap import Entry

    try:
        check_entry(address)
    except ConfigError:
        if "/tcp/0/" not in address and "999" not in address:  # what only a connection would show
            with pytest.raises(ConfigError):
                Entry.parse(address)
    else:
        Entry.parse(address)


@pytest.mark.parametrize(
    ("address", "fine"),
    [
        ("/dns4/peer.example.org/tcp/4001", True),
        ("/ip6/2001:db8::1/tcp/4001", True),
        ("/ip4/203.0.113.5/tcp/4001", True),
        ("/ip6/203.0.113.5/tcp/4001", False),
        ("peer.example.org:4001", False),
        (ENTRY, False),
    ],
)
def test_announced_addresses_have_no_peer_id(address: str, fine: bool) -> None:
    if fine:
        check_values(config(**{"local.network.announce": [address]}))
    else:
        assert refused(**{"local.network.announce": [address]}).startswith(f'local.network.announce: "{address}"')


def test_a_state_directory_cannot_be_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match=r"local.state_dir: .*/runs is a file and cannot be a folder"):
        check_values(config(tmp_path, **{"local.state_dir": "runs/a"}))


def test_a_text_of_ones_own_is_found(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words")
    check_values(config(tmp_path, **{"local.corpus": "text.txt"}))


def test_relays_are_entry_points_and_hole_punching_needs_them() -> None:
    check_values(config(**{"local.network.relays": [ENTRY], "local.network.hole_punching": True}))
    message = refused(**{"local.network.relays": ["/ip4/203.0.113.5/tcp/4001"]})
    assert message.startswith('local.network.relays: "/ip4/203.0.113.5/tcp/4001" does not end in')
    assert "needs local.network.relays" in refused(**{"local.network.hole_punching": True})


def test_notes_on_what_is_allowed_and_unusual() -> None:
    three = [Identity.generate().peer for _ in range(3)]
    usual = {"local.network.bootstrap": [ENTRY], "shared.agreement.validators": three}
    assert notes(config(**usual)) == []
    (note,) = notes(config(**usual, **{"shared.outer.nesterov": 0.9}))
    assert note.startswith("shared.outer.nesterov = 0.9 comes on top of sparseloco's residual")
    (note,) = notes(config(**usual, **{"shared.reducer.name": "average"}))
    assert "momentum" in note
    (note,) = notes(config(**{**usual, "local.network.bootstrap": []}))
    assert "`elastic bootstrap`" in note
    (note,) = notes(config(**{**usual, "shared.agreement.validators": three[:2]}))
    assert note.startswith("shared.agreement.validators names 2: the run stands still while one of them is down")
    (note,) = notes(config(**usual, **{"local.checkpoints.keep_every": 10**6}))
    assert note.startswith("local.checkpoints.keep_every = 1000000 is more than shared.rounds")
    subnet = {"shared.incentive": {"name": "subnet", "netuid": 3}}
    (note,) = notes(config(**usual, **subnet))
    assert "[local.incentive] is empty" in note
    assert notes(config(**usual, **subnet, **{"local.incentive": {"endpoint": "ws://127.0.0.1:9"}})) == []


def test_a_new_identity_is_a_peer_id() -> None:
    check_values(config(**{"shared.agreement.validators": [Identity.generate().peer]}))


@pytest.mark.parametrize("table", ["trace", "metrics"])
def test_a_secret_that_this_user_may_not_read_is_told_before_nothing_is_exported(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "collector.auth"
    secret.write_text("Basic abc")
    mine = config(tmp_path, **{f"local.{table}.authorization": "collector.auth"})
    check_values(mine)
    # Root may read everything, and tests may be root's.
    monkeypatch.setattr(os, "access", lambda path, mode: (Path(path), mode) != (secret, os.R_OK))
    with pytest.raises(
        ConfigError, match=rf"^local\.{table}\.authorization: who runs this cannot read {secret}, .*-m 600"
    ):
        check_values(mine)
