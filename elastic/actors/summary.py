"""The end of a quickstart: what was learnt, whether all peers hold the same model, what it cost, what to try next."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from elastic.actors.follow import Say
from elastic.actors.handle import PeerHandle
from elastic.actors.job import fp32_bytes, load_corpus
from elastic.actors.live import by_round, complete_rounds, slowest
from elastic.actors.peer import HELD_OUT_SEQUENCES
from elastic.terms import House, changes, history
from elastic.view import size

if TYPE_CHECKING:
    from elastic.actors.quickstart import Result, Settings

PROMPT = "It is a truth universally acknowledged, that "


def measure(handles: list[PeerHandle], result: "Result") -> None:
    """Ask the first peer for the held-out loss and a few words."""
    first, config = handles[0], result.configs[0]
    corpus = load_corpus(config)
    tokens = np.asarray(corpus.sources[0].tokens)
    unigram = unigram_loss(tokens, tokens[-int(len(tokens) * config.shared.data.held_out) :])
    result.held_out = unigram, first.ask(first.peer.held_out_loss.remote(HELD_OUT_SEQUENCES))
    result.sample = first.ask(first.peer.generate.remote(PROMPT, 120))


def unigram_loss(tokens: Any, held_out: Any) -> float:
    """Loss on the held-out text of a model that knows how often each token occurs before it, in nats per token."""
    size_ = int(tokens.max()) + 1
    counts = np.bincount(tokens[: len(tokens) - len(held_out)], minlength=size_) + 1.0
    log_share = np.log(counts / counts.sum())
    return float(-log_share[held_out].mean())


def identical(result: "Result") -> bool:
    """Whether all peers held the same anchor after every round that they reported, and in the end."""
    rounds = by_round(result.reports)
    equal = all(len({report.digest for report in entries}) == 1 for entries in rounds)
    return bool(rounds) and equal and len({status.digest for status in result.statuses}) == 1


def show(result: "Result", settings: "Settings", console: Console, say: Say) -> None:
    """Print the summary."""
    rounds = complete_rounds(result.reports, settings.peers)
    if not rounds:
        say(f"no round was completed by all {settings.peers} peers: see peer-*/peer.log in {result.folder}")
        return
    first, last = _mean_loss(rounds[0]), _mean_loss(rounds[-1])
    tokens = sum(report.tokens for report in result.reports)
    assert result.held_out is not None
    unigram, held_out = result.held_out
    say("")
    times = result.times
    say(f"trained    {tokens:,} tokens in {settings.rounds} rounds on {settings.peers} peers, "
        f"all in {times['end']:.0f} s")  # fmt: skip
    say(f"start-up   {times['start']:.0f} s: Ray {times['ray']:.0f}, then the peers' networks until "
        f"{times['network']:.0f}, Ray Train until {times['trainers']:.0f}; "
        f"peak memory of all processes {size(result.peak_bytes)}")  # fmt: skip
    say(f"loss       {first:.3f} -> {last:.3f} nats per token in training")
    say(f"held out   {held_out:.3f} nats per token; a unigram model of the same text has {unigram:.3f}")
    same = "bit-identical on all peers after every round" + (" that they lived to see, and now" if result.kills else "")
    say(f"anchors    {same if identical(result) else 'DIFFERENT between peers'}: {result.statuses[0].digest}")
    if result.kills:
        _show_chaos(result, console, say)
    for line in changed(result):
        say(f"changed    {line}")
    for line in result.on_chain:
        say(line)
    console.print(_traffic(result, settings))
    say(f'sample     "{_one_line(result.sample)}"')
    peer = result.folder / "peer-1"
    say(f"checkpoint {_newest(peer / 'state', 'anchor-*')}")
    say(f"logs       {peer / 'peer.log'}   traces {peer / 'traces.jsonl'} (Jaeger UI: Upload)")
    if shutil.which("elastic") is None:  # as after `make quickstart`
        say(f"first      . {Path(sys.prefix) / 'bin' / 'activate'}")
    say("next       elastic status " + str(result.folder))
    say(f"           elastic trace slow {result.folder}    # who made each round slow, and with what")
    say(f"           elastic report {result.folder}    # loss, who was late, verdicts, scores, as one HTML file")
    say(f"           elastic replay {result.folder}    # the whole run again from its records, bit for bit")
    say(f'           elastic generate {result.folder} "She was"    # its text; elastic export takes it along')
    say("           elastic quickstart --peers 4 --rounds 30 --report report.jsonl")
    say("           elastic quickstart --reducer average")
    say("           elastic init run.toml      # a run of your own, on several machines")


def changed(result: "Result") -> Iterator[str]:
    """What was agreed on about the run while it went on."""
    called = House(result.configs).called
    for first, before, after in history(result.configs):
        yield from (f"{line}, from round {first} on" for line in changes(before, after, called))


def _show_chaos(result: "Result", console: Console, say: Say) -> None:
    """Who was killed, and how long until a round counted its peer again."""
    came_back = ", ".join(f"{status.name} {status.restarts}" for status in result.statuses)
    say(f"chaos      {len(result.kills)} processes killed; restarts: {came_back}")
    out = Table("killed", "of", "counted again after", pad_edge=False)
    for kill in result.kills:
        back = "-" if kill.peer is None else "not any more" if kill.back_after is None else f"{kill.back_after:.1f} s"
        out.add_row(kill.kind, Text(kill.peer or "all, for good"), back)
    console.print(out)


def _traffic(result: "Result", settings: "Settings") -> Table:
    """Bytes per peer, and how much smaller a payload is than the fp32 pseudo-gradient it stands for."""
    out = Table("peer", "counted", "sent", "received", "payload per round", "vs fp32", "arrived last", pad_edge=False)
    rounds = complete_rounds(result.reports, settings.peers)
    last = [slowest(entries) for entries in rounds]
    for config in result.configs:
        reports = [report for report in result.reports if report.name == config.local.name]
        payload = max((report.payload_bytes for report in reports), default=0)
        ratio = f"{fp32_bytes(config) / payload:.0f}x smaller" if payload else "-"
        out.add_row(
            Text(config.local.name), f"{sum(r.counted for r in reports)}/{len(reports)}",
            size(sum(r.bytes_out for r in reports)), size(sum(r.bytes_in for r in reports)), size(payload), ratio,
            f"{last.count(config.local.name)} times",
        )  # fmt: skip
    return out


def _mean_loss(entries: list[Any]) -> float:
    losses = [report.loss for report in entries if report.loss is not None]
    return sum(losses) / len(losses) if losses else float("nan")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _newest(folder: Any, pattern: str) -> Any:
    files = sorted(folder.glob(f"**/{pattern}"), key=lambda file: file.stat().st_mtime)
    return files[-1] if files else folder
