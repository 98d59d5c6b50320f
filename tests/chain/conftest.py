"""Worlds for tests; the real SDK's caches lie in a directory of the test's own. Without the SDK there are no tests."""

from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.chain.world import World

collect_ignore_glob = [] if find_spec("bittensor") else ["test_*.py"]


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("BTCLI_TOKEN_SYMBOLS_CACHE", str(tmp_path / "symbols.json"))


@pytest.fixture
async def make_world() -> "AsyncIterator[Callable[..., World]]":
    """Makes devnets, with settings of the subnet; all are taken down at the end."""
    from incentives.devnet.node import Node
    from tests.chain.world import World, subnet

    worlds: list[World] = []

    def made(**settings: Any) -> World:
        worlds.append(World(Node(subnet(**settings))))
        return worlds[-1]

    yield made
    for each in worlds:
        for link in each.links:
            await link.close()
        each.node.close()


@pytest.fixture
def world(make_world: "Callable[..., World]") -> "World":
    return make_world()
