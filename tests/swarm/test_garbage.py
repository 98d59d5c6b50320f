"""A validator that posts garbage in every kind of record that validators hear beside the rounds stops nobody."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from builder import RUN, Swarm

from elastic.agreement.charter import AMENDMENTS
from elastic.amend import WISH
from elastic.messages import Amendment, PeerId, RoundIndex, SignedScoreboard
from elastic.testify import INVITATION, SCORES, WITNESS

NAMES = ("ann", "bob", "cyd", "eve")
KINDS = (SCORES, *WITNESS, WISH, INVITATION, AMENDMENTS)
GARBAGE = {
    "nothing": b"",
    "binary": bytes(range(256)) * 8,
    "another message": Amendment(validators=(PeerId("1" * 50),), incentive=None).canonical(),
    "deep": b"[" * 12_000,
    "a huge number": b'{"round": 1' + b"0" * 9_000 + b"}",
    "unsigned": SignedScoreboard(run=RUN, round=RoundIndex(1), peer=PeerId("1" * 50), scores={}).canonical(),
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_beside_the_rounds_stops_nobody(tmp_path: Path, what: str) -> None:
    # given a run that may elect, amend and invite
    changes: dict[str, Any] = {
        "incentive": {"name": "reputation", "entry": "work"}, "rounds": 5,
        "agreement": {"seats": 4, "absent_rounds": 2},
    }  # fmt: skip
    async with Swarm(tmp_path, *NAMES, validators=NAMES, **changes) as swarm:
        swarm.start()
        await swarm.until(lambda: swarm["eve"].peer is not None)
        # when one of its validators overwrites all that it says beside the rounds, again and again
        liar = swarm["eve"].id

        async def spoil() -> None:
            while True:
                for kind in KINDS:
                    for round_ in range(6):
                        records = swarm.network.records.setdefault((RUN, kind, RoundIndex(round_)), {})
                        records[liar] = GARBAGE[what]
                await asyncio.sleep(0)

        spoiling = asyncio.create_task(spoil())
        try:
            await swarm.finish()
        finally:
            spoiling.cancel()
        # then everyone is through, and nobody was convicted or elected by it
        assert len(swarm.anchors()) == 1
        assert all(node.peer.hearsay.liars == set() for node in swarm.nodes.values())
        assert all(node.peer.agreement.amendments() == [] for node in swarm.nodes.values())
