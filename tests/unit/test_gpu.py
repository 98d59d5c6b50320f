"""What a GPU computes is what others compute: checked where there is one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from team import session as session_of_a_team
from team import shared as shared_of_a_team
from team import two_rounds
from test_session import CORPUS, after, contributed, plan_of, shared
from test_team import INNER

from elastic.agreement.manifests import genesis
from elastic.config import Shared
from elastic.config_local import TrainConfig
from elastic.messages import ContributionHeader, Digest, Manifest, PeerId, RoundIndex
from elastic.registry import build
from elastic.state.store import StateStore
from elastic.train.gpu import gpu_memory
from elastic.train.session import Parts, Session
from elastic.train.workers import Worker
from elastic.wire.signing import Identity
from elastic.wire.tree import blob_digest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CONFIG = shared(rounds=5)
CPU, GPU = sorted(Identity.generate().peer for _ in range(2))


def session(folder: Path, config: Shared, device: str) -> Session:
    parts = Parts(
        model=build("model", config.model), corpus=CORPUS, assign=lambda plan: np.arange(4, dtype=np.int64),
        reducer=build("reducer", config.reducer), store=StateStore(folder),
    )  # fmt: skip
    return Session(config, parts, worker=Worker(device=device))


def founded(folder: Path) -> tuple[dict[PeerId, Session], Manifest]:
    """A peer on each kind of hardware, both at the beginning of round 1, and the genesis."""
    peers = {CPU: session(folder / "cpu", CONFIG, "cpu"), GPU: session(folder / "gpu", CONFIG, "cuda")}
    head = genesis("demo", peers[CPU].state().anchor, [CPU, GPU], CPU)
    for each in peers.values():
        each.outer_step(head, {})
    return peers, head


def test_a_peer_with_a_gpu_and_one_without_hold_the_same_anchor_in_every_round(tmp_path: Path) -> None:
    # given a run in which both train, on different hardware
    peers, head = founded(tmp_path)
    for round_ in range(1, 5):
        payloads = {peer: contributed(each, head) for peer, each in peers.items()}
        # when the round counts both
        head = after(peers[CPU], head, *payloads.items())
        by_digest = {blob_digest(payload): payload for payload in payloads.values()}
        anchors = {each.outer_step(head, by_digest) for each in peers.values()}
        # then their anchors are the same bits
        assert len(anchors) == 1, f"round {round_}"
    # and a restart finds it again, on the other kind of machine too
    assert {session(tmp_path / "gpu", CONFIG, "cpu").state().anchor} == anchors


def test_what_is_put_on_a_gpu_is_in_use_there() -> None:
    torch.zeros(1, device="cuda")
    before, size = gpu_memory() or (0, 0)
    kept = torch.zeros(2**28, dtype=torch.uint8, device="cuda")
    after_, same = gpu_memory() or (0, 0)
    assert (after_ - before, same) == (pytest.approx(kept.numel(), rel=0.1), size)
    assert size == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.05)


def test_a_gpu_and_a_cpu_measure_nearly_the_same_help(tmp_path: Path) -> None:
    # given one contribution, and two validators
    peers, head = founded(tmp_path)
    payload = contributed(peers[CPU], head)
    gains = {peer: gain(each, head, payload) for peer, each in peers.items()}
    # then
    assert gains[GPU] == pytest.approx(gains[CPU], rel=1e-2, abs=1e-5)


def gain(validator: Session, head: Manifest, payload: bytes) -> float:
    plan = plan_of(validator, head)
    header = ContributionHeader(
        run="demo", round=RoundIndex(1), peer=PeerId(CPU), anchor=plan.anchor, proof=Digest("c" * 64),
        payload=blob_digest(payload), size_bytes=len(payload), steps=2, tokens=100, loss=2.0,
    )  # fmt: skip
    return validator.assess(plan, header, payload, 7).gain_heldout


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"micro_batch": 1, "recompute": True},
        {"precision": "bf16"},
        {"precision": "bf16", "recompute": True, "compile": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_gpu_learns_what_a_cpu_does_however_it_computes(tmp_path: Path, optimizer: str, how: dict[str, Any]) -> None:
    config = shared_of_a_team(inner={**INNER, "optimizer": optimizer})
    exact = two_rounds(session_of_a_team(tmp_path / "cpu", config, Worker()))
    found = two_rounds(session_of_a_team(tmp_path / "gpu", config, Worker(device="cuda", how=TrainConfig(**how))))
    assert found["losses"] == pytest.approx(exact["losses"], rel=3e-2)
    assert found["evaluated"] == pytest.approx(exact["evaluated"], rel=3e-2)


def test_between_rounds_nothing_of_anchor_and_residual_is_on_the_gpu(tmp_path: Path) -> None:
    one = session_of_a_team(tmp_path, shared_of_a_team(), Worker(device="cuda"))
    two_rounds(one)
    assert {value.device.type for value in (*one.anchor.values(), *one.residual.values())} == {"cpu"}
