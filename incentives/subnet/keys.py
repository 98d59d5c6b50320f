"""Where a hotkey's key file is, and who may read it. Keys are opened in `chain.py`; the coldkey's never."""

import re
import stat
from pathlib import Path

from incentives.subnet.errors import KeyFileError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def hotkey_file(wallet_path: Path, wallet: str, hotkey: str) -> Path:
    """The key file of a wallet's hotkey, `<path>/<wallet>/hotkeys/<hotkey>`, which this user alone may read.

    Raises:
        KeyFileError: there is none, or others may read it.
    """
    for name in (wallet, hotkey):
        if NAME.fullmatch(name) is None:
            raise KeyFileError(f"{name!r} is not the name of a wallet or hotkey; names have letters, digits, . _ -")
    path = wallet_path.expanduser() / wallet / "hotkeys" / hotkey
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise KeyFileError(
            f"{path}: {error.strerror}; make a hotkey with `btcli wallet new-hotkey`, or name another one"
        ) from error
    if mode & 0o077:
        raise KeyFileError(f"{path}: others may read this private key; run: chmod 600 {path}")
    return path
