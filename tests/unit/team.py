"""The workers of a peer as processes of their own, without Ray: what one of them does, and how all are started."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from elastic.agreement.manifests import draft, genesis
from elastic.config import Shared
from elastic.config_local import TrainConfig
from elastic.data.corpus import of_text
from elastic.messages import Counted, PeerId
from elastic.registry import build
from elastic.schedule.plan import plan_round
from elastic.state.store import StateStore
from elastic.train.session import Parts, Session
from elastic.train.workers import Worker
from elastic.wire.tree import blob_digest

TOKENS = np.random.default_rng(0).integers(0, 16, 900).astype(np.uint16)


class Tokenizer:
    """A token a letter."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 16 for letter in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(ord("a") + token) for token in tokens)


CORPUS = of_text(TOKENS, 0.05, Tokenizer(), 16)
PEER = PeerId("12D3KooW" + "A" * 44)


def shared(**changes: Any) -> Shared:
    """A model of two layers on noise; six sequences a batch."""
    model = {"name": "llama", "vocab_size": 16, "layers": 2, "dim": 16, "heads": 2, "kv_heads": 1, "ffn_dim": 24}
    tree: dict[str, Any] = {
        "run": "demo", "rounds": 5, "model": model, "reducer": {"name": "sparseloco", "chunk": 64, "k": 8},
        "inner": {"steps": 3, "batch_size": 6, "sequence_length": 8, "warmup_steps": 1},
        "agreement": {"validators": (PEER,)}, "outer": {"learning_rate": 0.7, "nesterov": 0.9},
    }  # fmt: skip
    return Shared.model_validate(tree | changes)


def session(folder: Path, config: Shared, worker: Worker) -> Session:
    """One worker's."""
    torch.set_num_threads(1)
    with torch.device("meta"):
        model = build("model", config.model)
    sequences = np.arange(18, dtype=np.int64)
    reducer, store = build("reducer", config.reducer), StateStore(folder)
    parts = Parts(model=model, corpus=CORPUS, assign=lambda plan: sequences, reducer=reducer, store=store)
    return Session(config, parts, worker=worker)


def two_rounds(one: Session) -> dict[str, Any]:
    """Found the run, do two rounds alone and a look at the anchor; what came of it."""
    head = genesis("demo", one.state().anchor, [PEER], PEER)
    one.outer_step(head, {})
    losses = []
    for _ in range(2):
        plan = plan_round(one.shared, head, one.state().anchor, PEER)
        report = one.inner_steps(plan)
        losses += [report.first_loss, report.last_loss, report.mean_loss, float(report.tokens)]
        one.compress(plan, report)
        assert one.pending is not None
        payload = one.pending.payload
        counted = [Counted(peer=PEER, payload=blob_digest(payload), size_bytes=len(payload), share=1.0)]
        head = draft(head, one.state().anchor, counted, [PEER], PEER)
        one.outer_step(head, {blob_digest(payload): payload})
    looked = {"evaluated": one.evaluate(7), "generated": one.generate("abc", 6)}
    return {"losses": losses, "anchor": one.state().anchor, **looked}


def team(work: Callable[..., Any], world_size: int, folder: Path, *args: Any, killed: int = 0) -> list[Any]:
    """Have that many processes do `work(worker, folder, *args)`, where the first of `args`, if any, are [local.train].

    Returns:
        What each of them returned, in the order of ranks; the last `killed` die instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processes = mp.spawn(_member, (work, world_size, folder, args, killed > 0), nprocs=world_size, join=False)
    for process in processes.processes:
        process.join(timeout=200)
    for process in processes.processes:
        process.kill()  # changes nothing if it has ended
    codes = [process.exitcode for process in processes.processes]
    assert codes == [0] * (world_size - killed) + [9] * killed, f"{codes}: see the processes' output"
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(world_size - killed)]


def _member(
    rank: int, work: Callable[..., Any], world_size: int, folder: Path, args: tuple[Any, ...], alone: bool
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting = folder / f"meeting-{world_size}"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    told = work(Worker(rank, world_size, "cpu", TrainConfig(**(args[0] if args else {}))), folder, *args[1:])
    (folder / f"told-{rank}.json").write_text(json.dumps(told))
    if not alone:
        dist.barrier()  # nobody takes its half of a connection away while another still needs it
    os._exit(0)  # gloo's threads and an interpreter that ends do not go together: now and then it aborts
