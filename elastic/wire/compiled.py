"""How this project compiles loops: numba, without the GIL, kept on disk for later processes."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config, njit

_ROOT = Path(__file__).parent.parent
_SOURCES = ("wire/chunks.py", "wire/compiled.py", "wire/kernels.py", "reduce/kernels.py")
"""All that compiled code is made of. numba looks at the file of a function only, not at what it imports."""


def _folder() -> str | None:
    """Where compiled code of exactly these sources is kept; None if nothing can be written beside them."""
    stamp = hashlib.sha256(b"".join((_ROOT / name).read_bytes() for name in _SOURCES)).hexdigest()[:16]
    folder = Path(__file__).parent / "__pycache__" / f"kernels-{stamp}"
    try:
        for old in folder.parent.glob("kernels-*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "writable").touch()
    except OSError:
        return None
    return str(folder)


_FOLDER = _folder()


def jit(function: Callable[..., Any]) -> Any:
    """Compile at the first call. Products and sums are not fused, and nothing is reordered: no `fastmath`."""
    before, config.CACHE_DIR = config.CACHE_DIR, _FOLDER or config.CACHE_DIR
    try:
        return njit(nogil=True, cache=_FOLDER is not None, error_model="numpy")(function)
    finally:
        config.CACHE_DIR = before
