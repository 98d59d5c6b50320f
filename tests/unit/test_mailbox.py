"""The mailbox between the story and the workers: who waits for whom, and what a restart loses."""

import asyncio
from pathlib import Path

import pytest

from elastic import trace
from elastic.actors.mailbox import Command, Mailbox, Reply
from elastic.config_local import TraceConfig
from elastic.errors import ConfigError, DivergedError, TrainerFailedError, TrainerLostError
from elastic.messages import PeerId


async def turn() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def group(mailbox: Mailbox, incarnation: str = "first", world_size: int = 2) -> None:
    for rank in range(world_size):
        mailbox.hello(rank, world_size, incarnation)


async def taken(mailbox: Mailbox, rank: int = 0, incarnation: str = "first") -> Command:
    command = await mailbox.next_command(rank, incarnation)
    assert command is not None
    return command


async def test_a_call_before_hello_waits_until_all_workers_are_there() -> None:
    mailbox = Mailbox()
    call = asyncio.create_task(mailbox.call("state"))
    mailbox.hello(0, 2, "first")
    await turn()
    assert not call.done()
    mailbox.hello(1, 2, "first")
    command = await taken(mailbox)
    assert (command.verb, command.args) == ("state", ())
    assert mailbox.waiting == 1
    mailbox.reply(0, "first", Reply(command.serial, value="done"))
    assert await call == "done"
    assert mailbox.waiting == 0


async def test_rank_0_alone_is_asked_unless_everyone_is() -> None:
    mailbox = Mailbox()
    group(mailbox)
    call = asyncio.create_task(mailbox.call("compress", 1, 2))
    command = await taken(mailbox)
    assert command.args == (1, 2)
    other = asyncio.create_task(mailbox.next_command(1, "first"))
    await turn()
    assert not other.done()
    mailbox.reply(0, "first", Reply(command.serial, value=b"payload"))
    assert await call == b"payload"
    other.cancel()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
async def test_everyone_waits_for_all_ranks_and_takes_the_value_of_rank_0(order: tuple[int, ...]) -> None:
    mailbox = Mailbox()
    group(mailbox, world_size=3)
    call = asyncio.create_task(mailbox.call("inner_steps", everyone=True))
    commands = [await taken(mailbox, rank) for rank in range(3)]
    assert len({command.serial for command in commands}) == 1
    for rank in order:
        await turn()
        assert not call.done()
        mailbox.reply(rank, "first", Reply(commands[0].serial, value=f"of {rank}"))
    assert await call == "of 0"


async def test_a_rank_that_answers_twice_counts_once() -> None:
    mailbox = Mailbox()
    group(mailbox)
    call = asyncio.create_task(mailbox.call("inner_steps", everyone=True))
    serial = (await taken(mailbox)).serial
    mailbox.reply(0, "first", Reply(serial, value=1))
    mailbox.reply(0, "first", Reply(serial, value=1))
    await turn()
    assert not call.done()
    mailbox.reply(1, "first", Reply(serial))
    assert await call == 1


async def test_an_error_of_any_rank_is_raised_at_once() -> None:
    mailbox = Mailbox()
    group(mailbox)
    call = asyncio.create_task(mailbox.call("inner_steps", everyone=True))
    serial = (await taken(mailbox)).serial
    mailbox.reply(1, "first", Reply(serial, error=DivergedError("NaN")))
    with pytest.raises(DivergedError, match="NaN"):
        await call
    mailbox.reply(0, "first", Reply(serial, value=1))  # comes too late and changes nothing


async def test_calls_are_answered_each_by_its_own_reply() -> None:
    mailbox = Mailbox()
    group(mailbox, world_size=1)
    calls = [asyncio.create_task(mailbox.call("state")) for _ in range(3)]
    commands = [await taken(mailbox) for _ in calls]
    for command in reversed(commands):
        mailbox.reply(0, "first", Reply(command.serial, value=command.serial))
    assert await asyncio.gather(*calls) == [command.serial for command in commands]


async def test_a_restart_loses_what_was_asked_of_the_old_workers_and_releases_them() -> None:
    mailbox = Mailbox()
    group(mailbox)
    call = asyncio.create_task(mailbox.call("inner_steps", everyone=True))
    serial = (await taken(mailbox)).serial
    idle = asyncio.create_task(mailbox.next_command(0, "first"))
    await turn()
    mailbox.hello(1, 2, "second")
    with pytest.raises(TrainerLostError, match="restarted"):
        await call
    assert await idle is None
    mailbox.reply(0, "first", Reply(serial, value=1))
    assert await mailbox.next_command(1, "first") is None


async def test_after_a_restart_calls_wait_for_all_of_the_new_workers() -> None:
    mailbox = Mailbox()
    group(mailbox)
    mailbox.hello(0, 3, "second")
    mailbox.hello(1, 3, "second")
    call = asyncio.create_task(mailbox.call("state"))
    await turn()
    assert not call.done()
    mailbox.hello(2, 3, "second")
    command = await taken(mailbox, incarnation="second")
    mailbox.reply(0, "first", Reply(command.serial, value="old"))
    mailbox.reply(0, "second", Reply(command.serial, value="new"))
    assert await call == "new"


async def test_a_restart_between_ready_and_the_call_that_waited_for_it() -> None:
    mailbox = Mailbox()
    call = asyncio.create_task(mailbox.call("state"))
    await turn()
    group(mailbox, "first")
    mailbox.hello(1, 2, "second")  # before the call has woken up
    await turn()
    assert not call.done()
    mailbox.hello(0, 2, "second")
    command = await taken(mailbox, incarnation="second")
    mailbox.reply(0, "second", Reply(command.serial, value="fine"))
    assert await call == "fine"


async def test_a_late_hello_of_lost_workers_does_not_bring_them_back() -> None:
    mailbox = Mailbox()
    mailbox.hello(0, 2, "first")
    group(mailbox, "second")
    mailbox.hello(1, 2, "first")
    assert await mailbox.next_command(1, "first") is None
    call = asyncio.create_task(mailbox.call("state"))
    command = await taken(mailbox, incarnation="second")
    mailbox.reply(0, "second", Reply(command.serial, value=1))
    assert await call == 1


async def test_a_hello_said_twice_loses_no_command() -> None:
    mailbox = Mailbox()
    group(mailbox, world_size=1)
    call = asyncio.create_task(mailbox.call("state"))
    await turn()
    mailbox.hello(0, 1, "first")
    command = await taken(mailbox)
    mailbox.reply(0, "first", Reply(command.serial, value=1))
    assert await call == 1


async def test_replies_to_nothing_are_ignored() -> None:
    mailbox = Mailbox()
    mailbox.reply(0, "first", Reply(1, value=1))
    group(mailbox, world_size=1)
    mailbox.reply(0, "first", Reply(99, value=1))
    call = asyncio.create_task(mailbox.call("state"))
    command = await taken(mailbox)
    call.cancel()
    await turn()
    mailbox.reply(0, "first", Reply(command.serial, value=1))
    mailbox.reply(0, "first", Reply(command.serial, error=DivergedError("late")))


async def test_a_failure_is_permanent_and_the_first_one_is_told() -> None:
    mailbox = Mailbox()
    waiting = asyncio.create_task(mailbox.ready())
    await turn()
    mailbox.fail(ConfigError("the cause"))
    mailbox.fail(TrainerFailedError("the workers have returned"))
    group(mailbox, "second")
    mailbox.hello(0, 2, "third")
    for attempt in (waiting, mailbox.ready(), mailbox.call("state")):
        with pytest.raises(ConfigError, match="the cause"):
            await asyncio.wait_for(attempt, 5)


async def test_a_failure_reaches_who_waits_for_a_reply_and_releases_the_other_workers() -> None:
    mailbox = Mailbox()
    group(mailbox)
    call = asyncio.create_task(mailbox.call("state"))
    await taken(mailbox)
    idle = asyncio.create_task(mailbox.next_command(1, "first"))
    await turn()
    mailbox.fail(TrainerFailedError("broken"))
    with pytest.raises(TrainerFailedError, match="broken"):
        await call
    assert await idle is None
    assert await mailbox.next_command(0, "first") is None


async def test_close_releases_workers_and_who_waits_for_them() -> None:
    mailbox = Mailbox()
    group(mailbox)
    call = asyncio.create_task(mailbox.call("state"))
    await taken(mailbox)
    idle = asyncio.create_task(mailbox.next_command(1, "first"))
    await turn()
    mailbox.close()
    assert await idle is None
    for rank in (0, 1):
        assert await mailbox.next_command(rank, "first") is None
    with pytest.raises(TrainerLostError, match="closed"):
        await call


async def test_after_close_nothing_is_asked_any_more() -> None:
    mailbox = Mailbox()
    group(mailbox)
    mailbox.close()
    with pytest.raises(TrainerLostError, match="closed"):
        await mailbox.call("state")


async def test_it_knows_a_group_that_replaces_another_and_what_was_carried_out() -> None:
    # given
    mailbox = Mailbox()
    assert [mailbox.hello(rank, 2, "first") for rank in range(2)] == [False, False]
    assert mailbox.answers == 0
    call = asyncio.create_task(mailbox.call("state"))
    command = await taken(mailbox)
    mailbox.reply(0, "first", Reply(command.serial, value="done"))
    await call
    assert mailbox.answers == 1
    # then a restart is told once, and workers of the past replace nobody
    assert [mailbox.hello(rank, 2, "second") for rank in range(2)] == [True, False]
    assert not mailbox.hello(0, 2, "first")


async def test_a_command_says_what_it_is_for_and_when_it_was_asked(tmp_path: Path) -> None:
    mailbox = Mailbox()
    group(mailbox, world_size=1)
    trace.setup(TraceConfig(), run="demo", peer=PeerId("ann"), name="", state_dir=tmp_path)
    try:
        with trace.span("round.inner") as inner:
            call = asyncio.create_task(mailbox.call("inner_steps"))
            command = await taken(mailbox)
    finally:
        trace.shutdown()
    assert f"{inner.get_span_context().span_id:016x}" in command.context["traceparent"]
    assert command.asked > 0
    call.cancel()
