"""`elastic data …`. Heavy libraries are imported inside the commands that need them."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Annotated, Any

import typer

from elastic.config import RunConfig, load_config
from elastic.errors import ConfigError
from elastic.messages import RoundIndex
from elastic.registry import (
    KIND_OF,
    OPEN_PREPARED,
    PREPARE,
    PREPARE_SETTINGS,
    READING,
    VERIFY_PREPARED,
    load,
)

data = typer.Typer(help="Make token shards out of text, and look at them.", rich_markup_mode=None)
say = typer.echo

SHARD_TOKENS = 2**23
"""About: 16 or 32 MB, which a peer fetches as a whole."""
CORES_PER_WORKER = 8
Folder = Annotated[Path, typer.Argument(help="what `elastic data prepare --out` wrote")]


class Format(StrEnum):
    """Of files of text."""

    AUTO = "auto"
    TEXT = "text"
    JSONL = "jsonl"
    PARQUET = "parquet"


class Errors(StrEnum):
    """What to do where text is not UTF-8."""

    STRICT = "strict"
    REPLACE = "replace"


@data.command("prepare")
def prepare(  # noqa: PLR0913 - one argument per flag
    sources: Annotated[list[str], typer.Argument(help="files or globs, in quotes or not; also .gz")],
    out: Annotated[Path, typer.Option("--out", help="a new folder, or one in which this was interrupted")],
    tokenizer: Annotated[
        str, typer.Option(help='"bytes", "bpe" (learnt from the text), or the path of a tokenizer.json')
    ] = "bytes",
    vocab_size: Annotated[
        int | None, typer.Option(min=257, max=2**20, show_default="32768", help='tokens of "bpe", at most')
    ] = None,
    kind: Annotated[Format, typer.Option("--format", help="of all files; auto: by their names")] = Format.AUTO,
    field: Annotated[str, typer.Option(help="where the text is in JSON lines and parquet")] = "text",
    shard_tokens: Annotated[int, typer.Option(min=1, max=2**32, help="tokens of a shard, about")] = SHARD_TOKENS,
    workers: Annotated[int, typer.Option(min=0, max=1024, help="processes that encode; 0: one for 8 cores")] = 0,
    held_out: Annotated[
        float, typer.Option(min=0.0001, max=0.49, help="part at the end that no contributor is ever assigned")
    ] = 0.05,
    errors: Annotated[Errors, typer.Option(help="where text is not UTF-8: stop, or put � there")] = Errors.STRICT,
    plain: Annotated[bool, typer.Option(help="no progress bar")] = False,
) -> None:
    """Make token shards and an index of files of text, JSON lines or parquet.

    Each text file, each line of JSON and each row of parquet is a document. The result is the same for any number of
    workers. After an interruption the same command goes on. It ends with the lines for a run file.
    """
    paths = _files(sources, out)
    if vocab_size is not None and tokenizer != "bpe":
        raise ConfigError("--vocab-size is for --tokenizer bpe only; others have their own")
    with _explained(out):
        kinds = [load(KIND_OF)(path, kind.value) for path in paths]  # all, before any work is done
        reading = load(READING)(kind.value, field, errors.value)
        say(f"{len(paths):,} files ({', '.join(sorted(set(kinds)))})")
        settings = load(PREPARE_SETTINGS)(tokenizer, vocab_size, paths, reading, shard_tokens, held_out)
        with _bar(sum(path.stat().st_size for path in paths), plain or not sys.stderr.isatty()) as step:
            index = load(PREPARE)(paths, out, settings, workers or usual_workers(), step)
    _say_index(index)
    say("for a run file:")
    say(_for_a_run_file(out, index))


@data.command("show")
def show(folder: Folder) -> None:
    """Say what is in a folder of prepared tokens."""
    with _explained(folder):
        index = load(OPEN_PREPARED)(folder)
    _say_index(index)
    for shard in index.shards:
        say(f"  {shard.name}  {shard.tokens:>15,} tokens  sha256 {shard.sha256}")


@data.command("verify")
def verify(folder: Folder) -> None:
    """Compare every shard with its digest in the index; ends with 1 if one is damaged."""
    wrong = total = 0
    with _explained(folder):
        for _, problem in load(VERIFY_PREPARED)(folder):
            total += 1
            if problem:
                wrong += 1
                say(f"damaged  {problem}")
    if wrong:
        raise ConfigError(f"{folder}: {wrong} of {total} shards are damaged")
    say(f"whole: {total} shards")


@data.command("assigned")
def assigned(
    run_file: Annotated[Path, typer.Argument(help="the run file")],
    round_: Annotated[int, typer.Option("--round", min=1, help="which round")],
    peer: Annotated[
        str | None, typer.Option(help="whose: a peer id; the roster is that of the manifests in local.state_dir")
    ] = None,
    slot: Annotated[int | None, typer.Option(min=0, help="or: which place in the roster")] = None,
    roster: Annotated[int | None, typer.Option(min=1, max=1024, help="and how many places it has")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, show_default="shared.inner.steps", help="inner steps that it did")
    ] = None,
) -> None:
    """Print which tokens a peer was to train on in a round, and their digest.

    Everyone who has the run file and the indexes gets the same: where each sequence lies, of which source and shards.
    The digest is the SHA-256 of these lines.
    """
    from elastic.data.dealing import dealt, described, digest_of_deal
    from elastic.data.opening import open_corpus
    from elastic.schedule.mixture import Deal

    config = load_config(run_file)
    place, places = _place(config, round_, peer, slot, roster)
    shared, corpus = config.shared, open_corpus(config)
    deal = Deal(shared.seed, shared.run, round_, places, shared.data.block)
    count = (steps or shared.inner.steps) * shared.inner.batch_size
    try:
        numbers = dealt(config, corpus, deal, place, count)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    lines = [each.line() for each in described(config, corpus, numbers)]
    for line in lines:
        say(line)
    say(f"{len(lines)} sequences of round {round_} for slot {place} of {places}: sha256 {digest_of_deal(lines)}")


def usual_workers() -> int:
    """Processes that share this machine's cores: one keeps some busy by itself."""
    return max(1, (os.cpu_count() or 1) // CORES_PER_WORKER)


def _place(config: RunConfig, round_: int, peer: str | None, slot: int | None, roster: int | None) -> tuple[int, int]:
    """Slot and size of the roster."""
    if (peer is None) == (slot is None) or (slot is None) != (roster is None):
        raise ConfigError("say either --peer, or --slot with --roster")
    if slot is not None and roster is not None:
        return slot, roster
    from elastic.state.chain import CHAIN_FILE, manifests_in

    chain = config.local.state_dir / CHAIN_FILE
    heads = [each for each in manifests_in(chain) if each.round == RoundIndex(round_ - 1)] if chain.exists() else []
    if not heads:
        raise ConfigError(f"{chain}: no manifest of round {round_ - 1}, and so no roster: say --slot and --roster")
    if peer not in heads[0].roster:
        raise ConfigError(f"{peer} is not in the roster of round {round_}, which has {len(heads[0].roster)} peers")
    return heads[0].roster.index(peer), len(heads[0].roster)


def _files(sources: list[str], out: Path) -> list[Path]:
    """What files and globs name, each once, globs in order of names."""
    found: dict[Path, None] = {}
    for source in sources:
        names = [source] if Path(source).exists() else sorted(glob.glob(source, recursive=True))
        if not names:
            raise ConfigError(f"{source}: no such file, and nothing that matches it")
        for path in map(Path, names):
            if path.is_dir() and len(names) == 1:
                raise ConfigError(f'{path} is a folder: say which files of it, "{path}/**/*.txt"')
            if path.is_file() and out.resolve() not in path.resolve().parents:
                found[path] = None
    if not found:
        raise ConfigError(f"{' '.join(sources)}: no files")
    return list(found)


@contextmanager
def _explained(where: Path) -> Iterator[None]:
    """What is wrong with text or disk as one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise ConfigError(
                f"{where}: no space is left there; what is finished stays, and the same command goes on with it"
            ) from error
        raise ConfigError(f"{error.filename or where}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


@contextmanager
def _bar(total_bytes: int, plain: bool) -> Iterator[Callable[[int, int, bool], None]]:
    """A bar on stderr; files may be compressed, so its end is only about right."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[mega]:,.0f} MB of text"),
        TextColumn("{task.fields[tokens]:,} tokens"), TimeRemainingColumn(),
    ]  # fmt: skip
    read = made = 0
    with Progress(*columns, console=Console(stderr=True), disable=plain, transient=True) as progress:
        task = progress.add_task("preparing", total=total_bytes, mega=0.0, tokens=0)

        def step(text_bytes: int, tokens: int, encoded: bool) -> None:
            nonlocal read, made
            read, made = read + text_bytes, made + tokens
            what = "preparing" if encoded else "reading what is done"
            progress.update(
                task, completed=read, total=max(total_bytes, read), mega=read / 1e6, tokens=made, description=what
            )

        yield step


def _say_index(index: Any) -> None:
    end = f"token {index.end} behind each" if index.end is not None else "no token marks their end"
    say(f"tokens     {index.tokens:,} of {index.width} bytes, in {len(index.shards)} shards")
    say(f"documents  {index.documents:,}, {end}; {index.empty:,} empty ones left out")
    say(f"text       {index.text_bytes:,} bytes, {index.text_bytes / max(1, index.tokens):.2f} per token")
    say(f"tokenizer  {index.tokenizer}, {index.vocab_size:,} tokens, sha256 {index.tokenizer_sha256}")
    say(f"held out   {index.held_out:g} of the tokens, at the end")
    say(f"index      {index.sha256}")


def _for_a_run_file(folder: Path, index: Any) -> str:
    name = "".join(each if each.isalnum() and each.isascii() else "-" for each in folder.resolve().name).strip("-")
    name = name or "text"
    vocabulary = f"\n  vocab_size = {index.vocab_size}" if index.tokenizer != "bytes" else ""
    return (
        f'  [shared.data]\n  tokenizer = "{index.tokenizer}"{vocabulary}\n'
        f'  [[shared.data.sources]]\n  name = "{name}"\n  index = "{index.sha256}"\n  weight = 1.0\n'
        f'  [local.data.sources]\n  {name} = "{folder.resolve()}"'
    )
