"""What is refused before anything is sent, and what a client that is closed has to say."""

import asyncio
import threading
from datetime import datetime, timezone

import grpc
import pytest
from harness import eventually, run_program

from pgmq_grpc import AsyncClient, Client, JsonText, PgmqError, QueuePolicy, RetryBackoff

NOW = datetime.now(timezone.utc)


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1",
        "127.0.0.1:99999",
        "127.0.0.1:0",
        "127.0.0.1:",
        "http://127.0.0.1:50051",
        "dns:///queues",
        "::1:1",
        ":1",
    ],
)
def test_a_target_without_a_port_is_refused(target):
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="a target is host:port"):
            kind(target)


@pytest.mark.parametrize(
    "target",
    ["a:1", "[::1]:65535", "dns:a:1", "dns:///a.b:443", "dns://1.1.1.1/a:1", "unix:/a", "unix:///a", "ipv4:1.1.1.1:1"],
)
def test_other_targets_are_taken(target):
    Client(target).close()


@pytest.mark.parametrize("metadata", [{"A": "x"}, {"a b": "x"}, {"a": "x\n"}, {"a": "ü"}, {"a": None}, {1: "x"}])
async def test_metadata_that_grpc_cannot_send_is_refused(metadata):
    with pytest.raises(ValueError, match="metadata"):
        Client(metadata=metadata)
    with Client(metadata=lambda: metadata) as client, pytest.raises(PgmqError) as caught:
        client.get_server_info()
    assert (caught.value.code, caught.value.outcome_unknown) == (grpc.StatusCode.INVALID_ARGUMENT, False)
    async with AsyncClient(metadata=lambda: metadata) as aio:
        with pytest.raises(PgmqError) as caught:
            await aio.get_server_info()
    assert (caught.value.code, caught.value.outcome_unknown) == (grpc.StatusCode.INVALID_ARGUMENT, False)


def test_a_name_is_printable_ascii():
    with pytest.raises(ValueError, match="pgmq-client"):
        Client(name="ü")


def test_nothing_has_left_for_a_name_that_nobody_knows():
    with Client("nowhere.invalid:1", timeout=5) as client, pytest.raises(PgmqError) as caught:
        client.queue("any").send(1)
    assert (caught.value.code, caught.value.outcome_unknown) == (grpc.StatusCode.UNAVAILABLE, False)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("-inf")])
def test_a_timeout_that_is_none_is_refused(timeout, client, queue):
    for use in (lambda: Client(timeout=timeout), lambda: client.with_timeout(timeout)):
        with pytest.raises(ValueError, match="timeout"):
            use()
    with queue.consume() as messages, pytest.raises(ValueError, match="timeout"):
        messages.receive(timeout)


@pytest.mark.parametrize("timeout", [1e12, float("inf")])
async def test_a_timeout_longer_than_any_clock_is_a_long_one(timeout, client, queue):
    assert client.with_timeout(timeout).queue(queue.name).send(1).msg_id == 1
    async with AsyncClient(timeout=timeout) as aio:
        assert (await aio.queue(queue.name).send(2)).msg_id == 2
    with queue.consume() as messages:
        assert messages.receive(timeout).delete() == "DONE"


@pytest.mark.parametrize(
    "settings",
    [
        {"concurrency": 0},
        {"concurrency": -1},
        {"retry_delay": -1},
        {"retry_delay": float("nan")},
        {"action": "RELEASE"},
    ],
)
async def test_a_handler_with_settings_that_cannot_be_is_not_begun(settings, queue):
    queue.send(1)
    with pytest.raises(ValueError, match="|".join([*settings, "none of"])):
        queue.consume().run(print, **settings)
    async with AsyncClient() as aio:
        with pytest.raises(ValueError, match="|".join([*settings, "none of"])):
            await aio.queue(queue.name).consume().run(print, **settings)
    assert queue.metrics().visible_length == 1


@pytest.mark.parametrize("places", [0, -1])
def test_a_producer_without_a_place_is_refused(places, queue):
    with pytest.raises(ValueError, match="max_outstanding"):
        queue.producer(max_outstanding=places)


@pytest.mark.parametrize("batch", ["ab", b"ab", {"a": 1}, JsonText("[1]")])
def test_one_value_is_no_batch(batch, queue, client):
    for send in (
        lambda: queue.send_batch(batch),
        lambda: client.send_topic_batch("a", batch),
        lambda: client.transact().send_batch(queue.name, batch),
    ):
        with pytest.raises(TypeError, match="list of messages"):
            send()
    assert queue.metrics().queue_length == 0


def test_of_two_that_exclude_each_other_neither_is_forgotten(queue, client):
    queue.send(1)
    [message] = queue.read(visibility_timeout=60)
    for use in (
        lambda: queue.send(2, delay=1, visible_at=NOW),
        lambda: queue.set_visibility_timeout(message, 1, visible_at=NOW),
        lambda: client.validate_name(queue="a", pattern="#"),
    ):
        with pytest.raises(ValueError, match="exclude each other"):
            use()
    assert queue.metrics().in_flight_length == 1


async def test_a_transaction_is_for_one_block(queue, client):
    transaction = client.transact()
    with transaction:
        transaction.send(queue.name, "one")
    with pytest.raises(RuntimeError, match="one block"), transaction:
        pass
    for use in (lambda: transaction.send(queue.name, "two"), transaction.commit):
        with pytest.raises(RuntimeError, match="one block"):
            use()
    async with AsyncClient() as aio:
        again = aio.transact()
        async with again:
            again.send(queue.name, "two")
            assert len(await again.commit()) == 1
        with pytest.raises(RuntimeError, match="one block"):
            await again.commit()
    failed = client.transact()
    with pytest.raises(LookupError), failed:
        failed.send(queue.name, "three")
        raise LookupError
    with pytest.raises(RuntimeError, match="one block"):
        failed.commit()
    assert [each.message for each in queue.list_messages()] == ["one", "two"]


def test_what_has_failed_may_be_committed_again(proxy, queue):
    proxy.refuses = True
    with Client(proxy.target, timeout=0.5) as client:
        transaction = client.transact(idempotent=True)
        with pytest.raises(PgmqError), transaction:
            transaction.send(queue.name, 1)
        proxy.refuses = False
        eventually(lambda: has_committed(transaction))
    assert queue.metrics().queue_length == 1


def has_committed(transaction):
    try:
        return transaction.commit()
    except PgmqError:
        return None


def test_a_closed_client_refuses_everything(queue):
    client = Client()
    own = client.queue(queue.name)
    own.send_batch(range(3))
    [read] = own.read()
    consumer, watcher, producer, unused = own.consume(), own.watch(), own.producer(), own.producer()
    consumed = consumer.receive(30)
    watcher.__enter__()
    producer.send(1)
    made = own.consume()
    client.close()
    client.close()
    assert consumer.receive(30) is None
    assert list(watcher) == []
    for use in (
        own.get,
        lambda: own.send(1),
        lambda: own.send_batch([1]),
        lambda: list(client.list_queues()),
        read.delete,
        consumed.delete,
        lambda: producer.send(1),
        lambda: producer.submit(1),
        lambda: unused.send(1),
        made.receive,
        lambda: made.run(print),
        own.watch().__enter__,
        lambda: own.consume().receive(1),
        lambda: client.with_timeout(1).get_server_info(),
        client.transact().commit,
    ):
        with pytest.raises(RuntimeError, match="the client is closed"):
            use()
    assert queue.metrics().queue_length == 4


async def test_a_closed_client_of_asyncio_refuses_everything(name):
    client = AsyncClient()
    own = client.queue(name)
    await own.send_batch(range(3))
    [read] = await own.read()
    consumer, producer, made = own.consume(), own.producer(), own.consume()
    consumed = await consumer.receive(30)
    await producer.send(1)
    waiting = asyncio.create_task(own.watch().receive())
    await asyncio.sleep(0)
    await client.close()
    await client.close()
    assert await consumer.receive(30) is not consumed
    assert await asyncio.wait_for(waiting, 30) is None
    for use in (
        own.get,
        lambda: own.send(1),
        read.delete,
        consumed.delete,
        lambda: producer.send(1),
        made.receive,
        lambda: made.run(print),
    ):
        with pytest.raises(RuntimeError, match="the client is closed"):
            await use()


def test_close_waits_for_handlers(queue):
    queue.send_batch(range(3))
    client = Client()
    own = client.queue(queue.name)
    consumer, producer = own.consume(), own.producer()
    producer.send(3)
    begun, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def handle(message):
        begun.set()
        go_on.wait(30)
        own.send("sent by the handler")
        producer.send("sent by the handler, too")

    def close():
        client.close()
        closed.set()

    runner = threading.Thread(target=consumer.run, args=(handle,))
    runner.start()
    assert begun.wait(30)
    closer = threading.Thread(target=close)
    closer.start()
    eventually(lambda: queue.metrics().visible_length == 3)
    assert not closed.is_set()
    go_on.set()
    closer.join(30)
    runner.join(30)
    assert closed.is_set()
    assert not runner.is_alive()
    # One is deleted, and two were sent.
    assert queue.metrics().queue_length == 5


async def test_close_waits_for_handlers_of_asyncio_but_not_for_the_one_that_calls_it(aio, name):
    await aio.queue(name).send_batch(range(2))
    client, done = AsyncClient(), []
    both = asyncio.Barrier(2) if hasattr(asyncio, "Barrier") else None

    async def handle(message):
        if both is not None:
            await both.wait()
        await message.delete()
        # Each in a task of its own, which belongs to the handler all the same.
        await asyncio.wait_for(client.close(), 60)
        done.append(message.message)

    await asyncio.wait_for(client.queue(name).consume().run(handle, concurrency=2), 90)
    assert len(done) == (2 if both is not None else 1)


def test_a_handler_that_fails_is_no_hot_loop(queue):
    queue.send("poison")
    consumer = queue.consume()

    def handle(message):
        consumer.stop()
        raise LookupError

    consumer.run(handle)
    [message] = queue.list_messages()
    # The most is for a slow machine: a visibility timeout is longer.
    assert 0.75 < (message.vt - message.last_read_at).total_seconds() < 20


@pytest.mark.parametrize("settings", [{"retry_delay": 0}, {}])
def test_a_delay_that_is_given_is_taken(settings, queue):
    """By the caller, or by the policy, which is one of half an hour then."""
    queue.update(QueuePolicy(retry_backoff=RetryBackoff(minimum=1800, maximum=3600)))
    queue.send("poison")
    consumer, tries = queue.consume(), []

    def handle(message):
        tries.append(message.read_ct)
        if len(tries) == 2 or not settings:
            consumer.stop()
        raise LookupError

    consumer.run(handle, **settings)
    [message] = queue.list_messages()
    assert tries == ([1, 2] if settings else [1])
    assert ((message.vt - message.last_read_at).total_seconds() > 1000) == (not settings)


def test_a_delay_grows_up_to_a_minute(queue):
    consumer = queue.consume()
    queue.send(1)
    [message] = queue.read(visibility_timeout=60)
    for read_ct, longest in [(1, 1), (2, 2), (6, 32), (7, 60), (2**31 - 1, 60)]:
        message._raw.read_ct = read_ct
        assert 0.8 * longest <= consumer._pause_of(message) <= longest


def test_a_fork_leaves_consumers_and_producers_to_its_parent_but_may_settle(queue):
    program = f"""
import os
from pgmq_grpc import Client

client = Client()
queue = client.queue({queue.name!r})
queue.send_batch(range(4))
consumer, producer, watcher = queue.consume(), queue.producer(), queue.watch()
messages = [consumer.receive(30) for _ in range(3)]
producer.send(4)
watcher.__enter__()

def in_a_child():
    uses = [consumer.receive, lambda: consumer.run(print), lambda: list(consumer), watcher.receive]
    for use in [*uses, lambda: producer.send(5), lambda: producer.submit(5)]:
        try:
            use()
        except RuntimeError as error:
            assert "belongs to the process" in str(error), error
        else:
            raise AssertionError(use)
    assert messages[0].delete() == "DONE"
    assert messages[1].extend(100) == "DONE"
    for each in (consumer, producer, watcher, client):
        each.close()

if child := os.fork():
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(messages[1].delete(), messages[2].delete(), consumer.receive(30).message, producer.send(5).msg_id)
else:
    status = 1
    try:
        in_a_child()
        status = 0
    finally:
        os._exit(status)
"""
    assert run_program(program) == "0\nDONE DONE 3 6\n"
