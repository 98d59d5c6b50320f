"""`elastic bench …`. Heavy libraries are imported inside the commands that need them."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from elastic.bench.options import (
    Device,
    Json,
    Precision,
    Threads,
    can_be_written,
    count,
    folder_for,
    names,
    own_cluster,
    say,
    write,
)
from elastic.errors import ConfigError

bench = typer.Typer(help="Measure on this machine what the README and the docs state.", rich_markup_mode=None)

PICTURES = (".svg", ".png", ".pdf")
MAX_DAEMONS = 64


@bench.command("train")
def train(  # noqa: PLR0913 - options of a command
    preset: Annotated[
        list[str] | None, typer.Option(help="of the model, may be given more than once; the usual ones if not given")
    ] = None,
    layers: Annotated[int, typer.Option(min=0, help="instead of the preset's; 0: its own")] = 0,
    batch: Annotated[int, typer.Option(min=0, help="sequences of a step; 0: as many as the preset usually gets")] = 0,
    sequence: Annotated[int, typer.Option(min=0, help="tokens of a sequence; 0: as many as it usually gets")] = 0,
    precision: Annotated[Precision | None, typer.Option(help="fp32, or bf16, as is usual on a GPU")] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile; on a GPU both if not given")
    ] = None,
    recompute: Annotated[bool, typer.Option("--recompute", help="keep no activations of a layer")] = False,
    pairs: Annotated[int, typer.Option(min=0, help="of blocks of steps, A B B A; 0: 15, or 5 with --quick")] = 0,
    steps: Annotated[int, typer.Option(min=0, help="of a block; 0: as many as take a second; with --ray 30")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="threads; 0: one for each core, on a shared machine 1")] = 1,
    device: Annotated[Device, typer.Option(help="cuda: tokens, and what part of the GPU's peak that is")] = Device.CPU,
    alone: Annotated[bool, typer.Option("--alone", help="ours only, without `transformers`")] = False,
    ray: Annotated[bool, typer.Option("--ray", help="nano under Ray Train, beside a plain loop, instead")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="the smallest model, fewer pairs: half a minute")] = False,
    json: Json = None,
) -> None:
    """Inner steps of our decoder beside those of `transformers`.

    The same shape, first weights, tokens, clipping and AdamW, each in a process of its own, in alternating blocks. On a
    CPU nano, micro and two layers of 150m; on a GPU 150m and 1b in bf16, compiled and not, and the model FLOPs
    utilisation. --ray instead: nano trained by a peer's Ray Train worker, and by a plain loop.
    """
    can_be_written(json)
    pairs = pairs or (5 if quick else 15)
    if ray:
        with own_cluster() as folder:
            from elastic.bench.peer import measure_inner

            result = measure_inner(folder, steps or 30, pairs, say)
        say(f"median: peer {result['peer']:,.0f} tokens/s, plain {result['plain']:,.0f}, ratio {result['ratio']:.3f}")
        write(json, result)
        return
    device.require()
    from elastic.bench.train import Setup, chosen, measure, require_the_other, table

    if not alone:
        require_the_other()
    on_gpu = device is Device.CUDA
    cases = chosen(preset or (), {"layers": layers, "batch": batch, "sequence": sequence}, device.value, quick)
    choices = (compiled,) if compiled is not None else (False, True) if on_gpu else (False,)
    exact = precision or (Precision.BF16 if on_gpu else Precision.FP32)
    setup = Setup(
        cases, device.value, exact.value, choices, recompute, threads or os.cpu_count() or 1, pairs, steps, alone
    )
    rows = measure(setup, say)
    say(table(rows))
    write(json, rows)


@bench.command("join")
def join(
    peers: Annotated[int, typer.Option(min=1, max=8, help="peers that train already")] = 3,
) -> None:
    """Time from `elastic join` to the first counted work."""
    with own_cluster() as folder:
        from elastic.bench.peer import measure_join

        seconds = measure_join(folder, peers, say)
    say(f"join to first counted contribution: {seconds:.1f} s, beside {peers} training peers")


@bench.command("sim")
def sim(
    seeds: Annotated[int, typer.Option(min=1, help="schedules to simulate")] = 200,
    first: Annotated[int, typer.Option(min=0, help="the first seed; the others follow")] = 0,
    processes: Annotated[int, typer.Option(min=0, help="at a time; 0: one per core")] = 0,
    story: Annotated[bool, typer.Option("--story", help="tell what happens in the first one, and stop")] = False,
) -> None:
    """Whole swarms in simulated time, over a failing network.

    Each seed is a schedule: up to seven validators and some more peers live through loss, delay, reordering, splits,
    crashes with and without their disks, power cuts, wrong bytes, slow peers, thieves, and as many liars as a quorum
    withstands. Ends with exit code 1 if two manifests of a round were ever final, anchors differed, work was lost or
    counted twice, or a run did not end after the network had healed. A seed replays exactly. Ctrl-C ends it with the
    figures so far.
    """
    from elastic.bench.sim import measure_sim, tell_story

    if story:
        raise SystemExit(1 if tell_story(first, say).violation else 0)
    figures = measure_sim(first, seeds, processes, say)
    say(
        f"{figures.schedules:,} schedules, {len(figures.violations)} violations, in {figures.seconds:.0f} s: "
        f"{figures.rate:.1f} schedules/s, {figures.virtual_seconds / max(figures.seconds, 1e-9):,.0f} "
        f"simulated seconds per second, {figures.lives:,} lives of peers"
    )
    for outcome in figures.violations[:5]:
        say(f"the story of seed {outcome.seed}: elastic bench sim --first {outcome.seed} --story")
    raise SystemExit(1 if figures.violations else 0)


@bench.command("reducer", context_settings={"allow_extra_args": True})
def reducer(  # noqa: PLR0913 - options of a command
    context: typer.Context,
    params: Annotated[float, typer.Option(min=1e5, max=1e10, help="parameters of the model, about")] = 30e6,
    peers: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1024, help="payloads to add up, e.g. --peers 8 16 70; 8 16 if not given"),
    ] = None,
    passes: Annotated[int, typer.Option(min=1, help="passes; figures are their medians")] = 7,
    threads: Threads = 0,
    device: Annotated[Device, typer.Option(help="cpu: compiled kernels; cuda: the torch path")] = Device.CPU,
    json: Json = None,
) -> None:
    """SparseLoCo's speed, bytes and errors, beside plain PyTorch.

    The other side is in the style of the published code. Senders work on Student-t values, on values whose tiles differ
    in size by orders of magnitude ("uneven"), and on bf16. "decode" is what happens as a payload arrives.
    """
    counts = [*(peers or []), *map(count, context.args)] or [8, 16]
    can_be_written(json)
    device.require()
    import torch

    from elastic.bench.reducer import Setup, measure, table

    if threads:
        torch.set_num_threads(threads)
    result = measure(Setup(params, counts, passes, device=device.value), say)
    say(table(result))
    write(json, result)


@bench.command("data")
def data(
    texts: Annotated[list[Path] | None, typer.Argument(help="files of text; without any: Python's own library")] = None,
    megabytes: Annotated[int, typer.Option(min=1, help="of Python's library, about")] = 20,
    vocab_size: Annotated[int, typer.Option(min=257, max=2**20, help="of the tokenizer, learnt from the text")] = 8192,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0: as `elastic data prepare`")] = 0,
    pairs: Annotated[int, typer.Option(min=1, help="alternating pairs")] = 5,
) -> None:
    """Text to token shards, beside the tokenizer by itself.

    The same text, in pairs: from files to finished shards (`elastic data prepare`), and from memory to tokens.
    """
    from elastic.bench.data import library_sources, measure_data
    from elastic.data.commands import usual_workers

    paths = texts or library_sources(megabytes * 1_000_000)
    found = measure_data(paths, "bpe", vocab_size, workers or usual_workers(), pairs, say)
    say(
        f"medians: prepare {found.prepare:.2f} MB/s, encode_batch {found.encode_batch:.2f} (ratio {found.ratio:.2f}), "
        f"encode_batch_fast {found.encode_batch_fast:.2f} (ratio {found.ratio_fast:.2f})"
    )


@bench.command("convergence")
def convergence(
    quick: Annotated[bool, typer.Option("--quick", help="three rows, some minutes")] = False,
    tokens: Annotated[
        int, typer.Option(min=0, help="tokens of each row, to whole rounds; 0: as many as the rows want")
    ] = 0,
    text: Annotated[list[Path] | None, typer.Option(help="texts to train on instead of the shipped one")] = None,
    threads: Threads = 0,
    json: Annotated[Path | None, typer.Option("--json", help="keep finished rows here, and skip those it has")] = None,
    picture: Annotated[Path | None, typer.Option("--plot", help="draw the rows here (.svg, .png, .pdf)")] = None,
) -> None:
    """Held-out loss at equal tokens: AdamW, DiLoCo, SparseLoCo.

    The whole table takes over an hour on two cores. With --json finished rows are kept, and not made again.
    """
    can_be_written(json)
    can_be_written(picture)
    if picture is not None and picture.suffix not in PICTURES:
        raise ConfigError(f"--plot {picture}: expected a name that ends in {', '.join(PICTURES)}")
    import torch

    from elastic.bench.convergence import plot, run, table

    if picture is not None:
        import matplotlib  # noqa: F401 - better to miss it now than in an hour

    if threads:
        torch.set_num_threads(threads)
    try:
        rows = run(quick, tokens, text or [], json, say)
    except KeyboardInterrupt:
        say(f"stopped; finished rows are in {json}" if json else "stopped; with --json finished rows would be kept")
        raise
    say(table(rows))
    if picture is not None:
        plot(rows, picture)
        say(f"wrote {picture}")


@bench.command("exchange", context_settings={"allow_extra_args": True})
def exchange(
    context: typer.Context,
    peers: Annotated[
        list[int] | None,
        typer.Option(min=1, max=MAX_DAEMONS, help="peers that receive, e.g. --peers 8 16; 8 16 if not given"),
    ] = None,
    megabytes: Annotated[float, typer.Option("--mb", min=0.001, max=1000, help="payload, in 10^6 bytes")] = 50,
    upload_mbps: Annotated[
        float, typer.Option(min=0.1, max=1e5, help="every peer's uplink; the default is a quarter of 110 Mb/s")
    ] = 27.5,
    json: Json = None,
) -> None:
    """One payload to many peers, and what its origin sends.

    As a swarm, and everyone from its origin alone. Real p2pd daemons on loopback, in one process; every uplink is
    limited so that this machine can carry all of them.
    """
    counts = [*(peers or []), *map(count, context.args)] or [8, 16]
    if max(counts) > MAX_DAEMONS:
        raise ConfigError(f"--peers {max(counts)}: at most {MAX_DAEMONS}, each is a process of some 70 MB")
    can_be_written(json)
    from elastic.bench.exchange import measure, table

    expected = sum(counts) * megabytes * 8 / upload_mbps
    say(f"{megabytes:g} MB, every uplink {upload_mbps:g} Mb/s; about {1.2 * expected / 60 + 0.5:.0f} min")
    with tempfile.TemporaryDirectory(prefix="elastic-bench-") as folder:
        rows = measure(Path(folder), counts, megabytes, upload_mbps, say)
    say(table(rows))
    write(json, rows)


@bench.command("churn")
def churn(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="less of everything, some quarter of an hour instead of half an hour and more"),
    ] = False,
    part: Annotated[
        list[str] | None, typer.Option(help="only kills, splits, goodput or join; may be given more than once")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="keep the peers' logs and states here; else they are removed")
    ] = None,
    seed: Annotated[int, typer.Option(help="of losses and of who dies when")] = 0,
    json: Json = None,
) -> None:
    """Kill, split, join: real peers over an emulated internet.

    Six peers in network namespaces of this machine, with home lines between them (110/500 Mb/s, 40 ms, 0.1 % loss).
    What is killed in which phase and what it costs; partitions and how they heal; the state from one and from eight
    donors; tokens per second while peers die at random. Ray is left out, see `elastic quickstart --chaos`. Needs Linux
    and root, for the namespaces; skips itself where it may not make them. Ends with exit code 1 if a side without a
    quorum decided anything.
    """
    from elastic.bench.churn.wan import LinkSpeed, obstacle

    can_be_written(json)
    problem = obstacle()
    if problem is not None:
        say(f"skipped: {problem}")
        return
    from elastic.bench.churn.suite import QUICK, Part, Scale, measure

    if unknown := set(part or ()) - set(Part):
        raise ConfigError(f"--part {min(unknown)}: expected {', '.join(Part)}")
    scale = QUICK if quick else Scale()
    if part:
        scale = replace(scale, parts=tuple(map(Part, part)))
    with folder_for(folder) as place:
        tables = measure(place, scale, LinkSpeed(), seed, say)
    write(json, tables)
    raise SystemExit(1 if any(row["minority_rounds"] for row in tables.get(Part.SPLITS, ())) else 0)


@bench.command("trace")
def trace(
    quick: Annotated[
        bool, typer.Option("--quick", help="14 stragglers, and 10 pairs of rounds: some eight minutes")
    ] = False,
    stragglers: Annotated[int, typer.Option(min=0, help="how many are planted; 0: 200, or 14 with --quick")] = 0,
    pairs: Annotated[
        int | None,
        typer.Option(min=0, help="of rounds, for what traces cost; 0: not measured; else 30, or 10 with --quick"),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="keep the peers' logs and all spans here; else they are removed")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the stragglers, and of losses")] = 0,
    json: Json = None,
) -> None:
    """Plant stragglers in a real swarm: do its traces name them?

    Five peers in network namespaces of this machine, with home lines between them (110/500 Mb/s, 40 ms, 0.1 % loss) and
    a collector that 5 % of all packets do not reach. One after the other, a slow CPU, a slow uplink, a slow downlink, a
    lossy link, a slow validator, a stuck disk, a bad pair of peers, whose and how slow by chance. `elastic trace slow`
    should name each, peer and phase; what nobody waited for is left out, and counted. Then how many spans the collector
    has of all that were made, and what they cost, from rounds with and without them in turn. Ctrl-C ends it with what
    was found so far. Needs Linux and root, for the namespaces; skips itself where it may not make them. Exit code 1 if
    fewer than 95 % of the stragglers were named, or fewer than 99.9 % of the spans came.
    """
    from elastic.bench.churn.wan import LinkSpeed, obstacle

    can_be_written(json)
    problem = obstacle()
    if problem is not None:
        say(f"skipped: {problem}")
        return
    from elastic.bench.trace.suite import measure, measure_cost

    number = stragglers or (14 if quick else 200)
    compared = pairs if pairs is not None else (10 if quick else 30)
    with folder_for(folder) as place:
        result = measure(place, number, LinkSpeed(), seed, say)
        write(json, result)
        if compared and len(result["trials"]) == number:
            result["cost"] = measure_cost(place / "cost", compared, LinkSpeed(), seed, say)
            write(json, result)
    raise SystemExit(0 if result["shown"] else 1)


@bench.command("attack")
def attack(  # noqa: PLR0913 - options of a command
    quick: Annotated[
        bool, typer.Option("--quick", help="five telling kinds, one seed, fewer rounds: some minutes")
    ] = False,
    kinds: Annotated[str, typer.Option(help='only these, as in --kinds "sign flip, copy"; all if not given')] = "",
    peers: Annotated[int, typer.Option(min=5, max=48, help="peers of each swarm")] = 16,
    bad: Annotated[float, typer.Option(min=0, max=0.5, help="part of them that is bad")] = 0.25,
    rounds: Annotated[int, typer.Option(min=0, help="of each swarm; 0: 24, or 16 with --quick")] = 0,
    seeds: Annotated[int, typer.Option(min=0, help="swarms of each kind; 0: 3, or 1 with --quick")] = 0,
    first_seed: Annotated[int, typer.Option(min=0, help="of them; rules were chosen on 0 to 2, 4, 6 and 7")] = 0,
    defences: Annotated[str, typer.Option(help='as in --defences "none, reputation, subnet"; the first two')] = "",
    processes: Annotated[int, typer.Option(min=0, help="at a time; 0: one per core")] = 0,
    json: Annotated[Path | None, typer.Option("--json", help="keep finished cells here, and skip those it has")] = None,
) -> None:
    """Bad peers in a real swarm: who finds them, what they cost.

    Every kind of the zoo, with no defence (uniform shares, nobody assesses) and under each incentive, in swarms of real
    peers in one process: a real model on real text, SparseLoCo, four validators, and among the honest a slow peer, one
    that is cut off now and then, and one behind a slow line. "absent": without the bad ones, which damage is measured
    against. "honest": honest ones in their place, so what chance alone makes of the loss. Ctrl-C ends it with the table
    so far.
    """
    can_be_written(json)
    from elastic.bench.attack.suite import cells, chosen, defended, run
    from elastic.bench.attack.swarm import Setting
    from elastic.bench.attack.table import slashes, table

    wanted, against = chosen(names(kinds), quick), defended(names(defences))
    setting = Setting(peers, bad, rounds or (16 if quick else 24))
    last = first_seed + (seeds or (1 if quick else 3))
    outcomes = run(cells(wanted, against, setting, range(first_seed, last)), processes, json, say)
    say(table(outcomes))
    say(slashes(outcomes))
