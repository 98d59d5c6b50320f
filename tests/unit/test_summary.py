"""The end of a quickstart."""

from pathlib import Path

from elastic.actors.quickstart import Result
from elastic.actors.summary import changed
from elastic.config import parse_config
from elastic.state.chain import CHAIN_FILE, Chain
from tests.unit.test_charter import KEYS, run_of, to


def test_what_was_agreed_while_it_ran_is_mentioned(tmp_path: Path) -> None:
    # given two peers' folders, of which one was killed before it heard of the last change
    shared = {
        "run": "demo", "agreement": {"validators": [KEYS[0].peer]}, "incentive": {"name": "uniform"},
    }  # fmt: skip
    configs = [parse_config({"shared": shared, "local": {"state_dir": name}}, base=tmp_path) for name in ("a", "b")]
    run = run_of(None, to(incentive='{"earn":0.1,"name":"reputation"}'), None, to(KEYS[1]), None)
    for config, manifests in zip(configs, (run[:4], run), strict=True):
        chain = Chain(config.local.state_dir / CHAIN_FILE)
        for manifest in manifests:
            chain.append(manifest)
    # when
    lines = list(changed(Result(tmp_path, configs)))
    # then
    assert lines == [
        'incentive  uniform -> reputation {"earn":0.1}, from round 3 on',
        f"validator  + …{KEYS[1].peer[-6:]}, from round 5 on",
        f"validator  - …{KEYS[0].peer[-6:]}, from round 5 on",
    ]


def test_where_nothing_was_nothing_is_said(tmp_path: Path) -> None:
    config = parse_config({"shared": {"run": "demo", "agreement": {"validators": [KEYS[0].peer]}}}, base=tmp_path)
    assert list(changed(Result(tmp_path, [config]))) == []
