"""What a worker does with errors of the session's verbs."""

from types import SimpleNamespace
from typing import Any

import pytest

from elastic.actors.mailbox import Command
from elastic.actors.worker import execute
from elastic.errors import DivergedError, TrainerFailedError


def session(error: Exception, world_size: int) -> Any:
    def verb() -> None:
        raise error

    return SimpleNamespace(verb=verb, worker=SimpleNamespace(world_size=world_size))


def test_alone_a_bug_travels_back_as_one_line() -> None:
    reply = execute(session(RuntimeError("first\nsecond"), 1), Command(1, "verb", ()))
    assert isinstance(reply.error, TrainerFailedError) and "\n" not in str(reply.error)


def test_our_own_errors_travel_back_as_themselves() -> None:
    reply = execute(session(DivergedError("nan"), 2), Command(1, "verb", ()))
    assert isinstance(reply.error, DivergedError)


def test_when_a_partner_died_the_worker_fails_too_so_that_the_group_is_restarted() -> None:
    with pytest.raises(RuntimeError, match="closed by peer"):
        execute(session(RuntimeError("Connection closed by peer"), 2), Command(1, "verb", ()))
