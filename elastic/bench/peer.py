"""Measurements that a user can repeat: what Ray Train costs the inner steps, and how long joining takes."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import ray

from elastic.actors.desk import TrainerDesk
from elastic.actors.follow import Say
from elastic.actors.handle import PeerHandle
from elastic.actors.job import Job
from elastic.actors.launch import start_peer
from elastic.actors.quickstart import EntryPoint, Settings, free, local_cluster, run_files
from elastic.config import RunConfig, parse_config
from elastic.errors import ElasticError
from elastic.messages import NO_DIGEST, PeerId, RoundIndex, RoundPlan
from elastic.wire.signing import Identity

NOBODY = PeerId("1" * 46)
NAMESPACE = "elastic-bench"
SETTLED_ROUNDS = 4
"""Rounds after which a swarm has its rhythm."""


class BenchHost(TrainerDesk):
    """A trainer without a swarm around it."""

    def __init__(self, config: RunConfig, actor: str) -> None:
        super().__init__()
        from elastic.actors.trainer import RayTrainer

        job = Job(actor, NAMESPACE, config)
        self._trainer = RayTrainer(self._mailbox, job, config.local.ray, config.local.state_dir / "ray")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trainer.start(on_restart=lambda because: None, on_end=self._ended)

    def _ended(self, error: ElasticError) -> None:
        """The trainer gave up: whoever waits for it hears why. Called from the trainer's thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._mailbox.fail, error)

    async def inner_steps(self, plan: RoundPlan) -> tuple[int, float]:
        """(tokens, seconds), the whole way from here to the worker and back."""
        self._loop = asyncio.get_running_loop()
        await self._mailbox.ready()
        start = time.perf_counter()
        report = await self._trainer.inner_steps(plan)
        await self._trainer.state()  # answered once the worker has made its report to Ray Train
        return report.tokens, time.perf_counter() - start

    async def close(self) -> None:
        """Stop the trainer."""
        await self._trainer.close()
        await asyncio.to_thread(self._trainer.join, 5.0)


def measure_inner(folder: Path, steps: int, pairs: int, say: Say) -> dict[str, float]:
    """Tokens per second of the peer's trainer over those of a plain PyTorch loop, in alternating pairs.

    Both run the same model, optimizer and batches on one thread; the trainer's time includes the call through the
    mailbox, taking over the anchor, and Ray Train's report.
    """
    with local_cluster(num_cpus=2):
        return _paired(_config(folder, steps), pairs, say)


def _paired(config: RunConfig, pairs: int, say: Say) -> dict[str, float]:
    host = ray.remote(BenchHost).options(name="host", namespace=NAMESPACE, num_cpus=0).remote(config, "host")
    plain = plain_loop(config)
    ratios, ours, theirs = [], [], []
    for number in range(1, pairs + 2):
        plan = _plan(config, number)
        both = [lambda plan: ray.get(host.inner_steps.remote(plan)), plain]
        rates = {}
        for who in both[:: -1 if number % 2 else 1]:
            tokens, seconds = who(plan)
            rates[who] = tokens / seconds
        if number == 1:
            continue  # the first pair warms up both
        ours.append(rates[both[0]])
        theirs.append(rates[plain])
        ratios.append(ours[-1] / theirs[-1])
        say(f"pair {number - 1:2d}: peer {ours[-1]:8,.0f} tokens/s, plain loop {theirs[-1]:8,.0f}, {ratios[-1]:.3f}")
    ray.get(host.close.remote())
    return {"peer": median(ours), "plain": median(theirs), "ratio": median(ratios)}


def measure_join(folder: Path, peers: int, say: Say) -> float:
    """Seconds from starting `elastic join` to the round that counts the newcomer, beside peers that train already."""
    settings = Settings(peers=peers + 1, rounds=10_000, workers=(1,) * (peers + 1), folder=folder, plain=True)
    handles: list[PeerHandle] = []
    with ExitStack() as stack:
        entry = stack.enter_context(closing(EntryPoint(folder)))
        stack.enter_context(local_cluster(num_cpus=peers + 2))
        stack.callback(free, handles)
        configs = run_files(folder, settings, entry.address(), peers)
        handles += [start_peer(config) for config in configs[:-1]]
        say(f"waiting for {peers} peers to train")
        while min(_rounds(handle) for handle in handles) < SETTLED_ROUNDS:
            time.sleep(0.5)
        say("the newcomer's `elastic join` starts")
        report = folder / "newcomer.jsonl"
        run_file = _newcomer(configs[-1], ray.get_runtime_context().gcs_address, report)
        start = time.monotonic()
        newcomer = stack.enter_context(_joining(run_file, folder / "newcomer.log"))
        while not _counted(report):
            if newcomer.poll() is not None:
                raise ElasticError(f"the newcomer ended: {(folder / 'newcomer.log').read_text()[-500:]}")
            time.sleep(0.1)
        return time.monotonic() - start


def _newcomer(config: RunConfig, address: str, report: Path) -> Path:
    """The run file of a peer that joins by hand, on the cluster with that address."""
    path = config.local.state_dir / "run.toml"
    path.write_text(
        path.read_text()
        .replace("[local.ray]", f'[local.ray]\naddress = "{address}"')
        .replace("\n[local.network]", f"report = {json.dumps(str(report))}\n\n[local.network]")
    )
    return path


@contextmanager
def _joining(run_file: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`elastic join` as a process, which leaves in the end."""
    with log.open("wb") as out:
        command = [sys.executable, "-m", "elastic", "join", str(run_file)]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _rounds(handle: PeerHandle) -> int:
    return int(handle.status().round)


def _counted(report: Path) -> bool:
    lines = report.read_bytes().splitlines() if report.exists() else []
    return any(json.loads(line)["counted"] for line in lines)


def plain_loop(config: RunConfig) -> Callable[[RoundPlan], tuple[int, float]]:
    """The reference: what anyone would write without a framework."""
    import torch

    from elastic.actors.job import assigner, load_corpus
    from elastic.registry import build
    from elastic.train.tokens import Batches

    torch.set_num_threads(config.local.ray.threads)
    inner, corpus = config.shared.inner, load_corpus(config)
    assign = assigner(config, corpus)
    model = build("model", config.shared.model)
    model.initialize(config.shared.seed)
    betas = (inner.beta1, inner.beta2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=inner.learning_rate, betas=betas, fused=True)

    def run(plan: RoundPlan) -> tuple[int, float]:
        tokens, start = 0, time.perf_counter()
        for batch in Batches(corpus, assign(plan), inner.sequence_length, inner.batch_size):
            model.loss(batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), inner.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            tokens += batch.shape[0] * (batch.shape[1] - 1)
        return tokens, time.perf_counter() - start

    return run


def _config(folder: Path, steps: int) -> RunConfig:
    tree: dict[str, Any] = {
        "shared": {"run": "bench", "inner": {"steps": steps}, "agreement": {"validators": [NOBODY]}},
        "local": {"state_dir": "peer", "ray": {"threads": 1}},
    }
    config = parse_config(tree, base=folder)
    Identity.load_or_create(config.key_path)  # a worker's spans say whose they are
    return config


def _plan(config: RunConfig, number: int) -> RoundPlan:
    return RoundPlan(
        run="bench", round=RoundIndex(number), previous=NO_DIGEST, anchor=NO_DIGEST, peer=NOBODY, roster=(NOBODY,),
        slot=0, inner_steps=config.shared.inner.steps, seed=0, train_seconds=1e6, gather_seconds=1.0,
    )  # fmt: skip
