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
    assert {first, last} <= {"DONE", "NOT_FOUND"}
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
    assert {first, last} <= {"DONE", "NOT_FOUND"}
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
