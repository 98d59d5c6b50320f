"""Dead sockets are swept, and those who live are not even disturbed."""

import os
import socket
from pathlib import Path

import pytest

from elastic.exchange.dht import leftovers


def test_a_dead_socket_goes_and_a_live_one_is_not_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given an old socket that somebody listens on, one on which nobody does, and a young one
    monkeypatch.setattr(leftovers, "HIVEMIND", tmp_path)
    monkeypatch.setattr(leftovers.tempfile, "gettempdir", lambda: str(tmp_path))
    live, dead, young = (tmp_path / f"hivemind-{name}.sock" for name in ("live", "dead", "young"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(live))
        server.listen()
        server.setblocking(False)
        for path in (dead, young):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as gone:
                gone.bind(str(path))
        for path in (live, dead):
            os.utime(path, (0, 0))
        # when
        leftovers.sweep()
        # then
        assert live.exists() and young.exists() and not dead.exists()
        with pytest.raises(BlockingIOError):
            server.accept()
