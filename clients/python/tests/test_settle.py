"""Settles of several messages, of which the database refuses one."""

import asyncio
import threading

import psycopg
import pytest
from harness import eventually

from pgmq_grpc import AsyncClient, Client, PgmqError

REFUSAL = """
CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.message = '"kept"' THEN
        RAISE EXCEPTION 'this one is kept';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER refuse BEFORE DELETE ON pgmq.q_refusing FOR EACH ROW EXECUTE FUNCTION refuse();
"""


def connected(address):
    names = {"database": "dbname", "username": "user"}
    return psycopg.connect(**{names.get(name, name): value for name, value in address.items()})


@pytest.fixture
def refusing(postgres):
    """The target of a server with a queue that holds three messages, of which one cannot be deleted."""
    target, address = postgres
    with Client(target) as client:
        queue = client.queue("refusing")
        queue.create()
        with connected(address) as database:
            database.execute(REFUSAL)
        queue.send_batch(["first", "kept", "last"])
        yield target
        queue.drop()


def left(target):
    with Client(target) as client:
        return [each.message for each in client.queue("refusing").list_messages()]


def test_of_several_some_may_be_settled_and_of_one_it_is_known(refusing):
    with Client(refusing) as client:
        queue = client.queue("refusing")
        messages = queue.read(3)
        for several in (messages, [message.msg_id for message in messages]):
            with pytest.raises(PgmqError) as caught:
                queue.delete(several)
            assert (caught.value.reason, caught.value.outcome_unknown) == ("REFUSED_BY_DATABASE", True)
        with pytest.raises(PgmqError) as caught:
            messages[1].delete()
        assert (caught.value.reason, caught.value.outcome_unknown) == ("REFUSED_BY_DATABASE", False)
        with pytest.raises(PgmqError) as caught, client.transact() as transaction:
            transaction.delete("refusing", messages)
        assert not caught.value.outcome_unknown


async def test_each_message_of_a_stream_has_its_own_outcome(refusing):
    async with AsyncClient(refusing) as client, client.queue("refusing").consume() as messages:
        held = [await messages.receive(30) for _ in range(3)]
        # At the same time, so that one command has them all.
        first, kept, last = await asyncio.gather(*(each.delete() for each in held), return_exceptions=True)
    # What the command for all has deleted is gone when it is deleted alone.
    assert first == last == "DONE"
    assert (kept.reason, kept.outcome_unknown) == ("REFUSED_BY_DATABASE", False)
    assert left(refusing) == ["kept"]


async def test_each_message_has_its_own_outcome_when_there_is_no_stream_any_more(refusing):
    async with AsyncClient(refusing) as client:
        consumer = client.queue("refusing").consume()
        held = [await consumer.receive(30) for _ in range(3)]
        settled = asyncio.gather(*(each.delete() for each in held), return_exceptions=True)
        await asyncio.sleep(0)
        await consumer.close()
        first, kept, last = await settled
    assert first == last == "DONE"
    assert kept.reason == "REFUSED_BY_DATABASE"
    assert left(refusing) == ["kept"]


def test_what_a_handler_has_done_is_settled_once_its_lock_is_free(postgres):
    target, address = postgres
    with Client(target) as client, connected(address) as database:
        queue = client.queue("locked")
        queue.create()
        queue.send("done")
        consumer, handled = queue.consume(), []

        def handle(message):
            database.execute("SELECT FROM pgmq.q_locked FOR UPDATE")
            handled.append(message.message)
            # The server waits for a lock for two seconds.
            threading.Timer(3, database.rollback).start()

        runner = threading.Thread(target=consumer.run, args=(handle,))
        runner.start()
        eventually(lambda: queue.metrics().queue_length == 0)
        consumer.stop()
        runner.join(30)
        queue.drop()
    assert handled == ["done"]


def test_what_a_handler_has_done_and_the_database_refuses_comes_back(refusing):
    with Client(refusing) as client:
        # One place only, which would be kept for as long as the server extends.
        consumer = client.queue("refusing").consume(visibility_timeout=1, max_in_flight=1)
        kept, seen = [], []

        def handle(message):
            seen.append(message.message)
            if message.message == "kept":
                kept.append(message.read_ct)
            if len(kept) >= 2 and "last" in seen:
                consumer.stop()

        runner = threading.Thread(target=consumer.run, args=(handle,))
        runner.start()
        runner.join(60)
        assert not runner.is_alive()
    assert kept[:2] == [1, 2]
    assert left(refusing) == ["kept"]


async def test_a_message_that_a_handler_could_not_settle_is_released(aio, name):
    queue, seen = aio.queue(name), []
    await queue.send("no dead-letter queue")
    consumer = queue.consume()

    async def handle(message):
        seen.append(message.read_ct)
        if message.read_ct == 1:
            await message.dead_letter("why not")
        consumer.stop()

    await asyncio.wait_for(consumer.run(handle), 60)
    assert seen == [1, 2]
    assert (await queue.metrics()).queue_length == 0


async def test_a_settle_that_cannot_be_written_is_its_callers_error_alone(aio, name):
    queue = aio.queue(name)
    await queue.send_batch([1, 2])
    async with queue.consume() as messages:
        first, second = await messages.receive(30), await messages.receive(30)
        for settle in (
            lambda: first.dead_letter(LookupError("no text")),
            lambda: first.dead_letter("\ud800"),
            lambda: first.release(float("nan")),
            lambda: first.release(1e20),
            lambda: first.extend(float("nan")),
        ):
            with pytest.raises((TypeError, ValueError)):
                await asyncio.wait_for(settle(), 30)
        with pytest.raises(PgmqError) as caught:
            await asyncio.wait_for(first.dead_letter("x" * (9 << 20)), 30)
        assert caught.value.reason == "MESSAGE_TOO_LARGE"
        assert not first.settled
        assert await asyncio.wait_for(first.delete(), 30) == "DONE"
        assert await asyncio.wait_for(second.delete(), 30) == "DONE"


async def test_what_is_gone_when_it_is_settled_again_alone_is_done(refusing):
    async with AsyncClient(refusing) as client, client.queue("refusing").consume() as messages:
        gone, kept, last = [await messages.receive(30) for _ in range(3)]
        # As a command for all does that is refused after it has deleted some.
        assert await client.queue("refusing").delete([gone.msg_id]) == ["DONE"]
        settles = (gone.delete(), kept.delete(), last.delete())
        first, refused, third = await asyncio.gather(*settles, return_exceptions=True)
    assert (first, refused.reason, third) == ("DONE", "REFUSED_BY_DATABASE", "DONE")


def test_a_retry_delay_that_cannot_be_written_is_the_error_of_run(queue):
    with pytest.raises(ValueError, match="retry_delay"):
        queue.consume().run(print, retry_delay=float("nan"))
