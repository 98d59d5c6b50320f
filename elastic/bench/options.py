"""What the commands of `elastic bench` share: options; files and folders, looked at before anything runs."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from elastic.errors import ConfigError

say = typer.echo

Json = Annotated[Path | None, typer.Option("--json", help="write all figures here")]
Threads = Annotated[int, typer.Option(min=0, help="threads; 0: as many as torch takes by itself")]


class Precision(StrEnum):
    """Of products and activations."""

    FP32 = "fp32"
    BF16 = "bf16"


class Device(StrEnum):
    """Where something is measured."""

    CPU = "cpu"
    CUDA = "cuda"

    def require(self) -> None:
        """It is there.

        Raises:
            ConfigError: it is not.
        """
        import torch

        if self is Device.CUDA and not torch.cuda.is_available():
            raise ConfigError("--device cuda: torch sees no GPU here")


def names(listed: str) -> list[str]:
    return [each.strip() for each in listed.split(",") if each.strip()]


def count(argument: str) -> int:
    if not argument.isdecimal() or not 1 <= int(argument) <= 1024:
        raise ConfigError(f"--peers {argument}: expected numbers from 1 to 1024, as in --peers 8 16 70")
    return int(argument)


def can_be_written(path: Path | None) -> None:
    """Better to find out now than when everything is measured."""
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{path}: there is no folder {folder}")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"{path}: cannot be written")


def write(path: Path | None, result: Any) -> None:
    if path is not None:
        path.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
        say(f"wrote {path}")


@contextmanager
def folder_for(wanted: Path | None) -> Iterator[Path]:
    """A new folder: that one, which stays, or a temporary one."""
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="elastic-bench-") as name:
            yield Path(name)
        return
    try:
        wanted.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--dir {wanted}: {error.strerror}; name a folder that is not there yet") from error
    yield wanted.resolve()


@contextmanager
def own_cluster() -> Iterator[Path]:
    """A folder and the environment for a Ray cluster of our own; Ray must not be imported before."""
    from elastic.actors import environment

    with tempfile.TemporaryDirectory(prefix="elastic-bench-") as name:
        environment.own_cluster(Path(name))
        yield Path(name)
