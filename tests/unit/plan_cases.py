"""Plans for tests."""

from pathlib import Path
from typing import Any

from elastic.config import load_config, parse_config
from elastic.plan.describe import PeerGroup
from elastic.plan.estimate import Case

COVENANT_FILE = Path(__file__).parents[2] / "examples" / "covenant-72b.toml"
PEER = "12D3KooW" + "A" * 44


def covenant() -> Case:
    """The example."""
    return Case.of(load_config(COVENANT_FILE))


def case(preset: str = "150m", *groups: PeerGroup, plan: dict[str, Any] | None = None, **shared: Any) -> Case:
    """A run of a preset and these peers; with other things in [plan], and in tables of [shared]."""
    peers = [group.model_dump() for group in groups] or [PeerGroup().model_dump()]
    run = {"run": "demo", "agreement": {"validators": [PEER]}, "model": {"name": "llama", "preset": preset}, **shared}
    tree = {"shared": run, "plan": {"peers": peers, **(plan or {})}}
    return Case.of(parse_config(tree, base=Path("/base")))
