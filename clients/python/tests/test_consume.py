"""Consumers and watchers: loops, handlers, and what becomes of them when connections and servers end."""

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import eventually

from pgmq_grpc import AsyncClient, Client, PgmqError, QueuePolicy, RetryBackoff


def test_a_loop_gives_messages_as_they_come(queue):
    queue.send_batch(range(3))
    seen = []
    with queue.consume() as messages:
        for message in messages:
            seen.append(message.message)
            assert message.delete() == "DONE"
            if len(seen) == 3:
                queue.send_batch([3, 4])
            if len(seen) == 5:
                messages.stop()
    assert seen == [0, 1, 2, 3, 4]
    assert queue.metrics().queue_length == 0


def test_leaving_a_loop_ends_the_stream_and_gives_back_what_was_not_given_out(queue):
    queue.send_batch(range(50))
    for message in queue.consume():
        message.delete()
        break
    eventually(lambda: queue.metrics().visible_length == 49)


async def test_leaving_an_async_loop_does_too(aio, name):
    queue = aio.queue(name)
    await queue.send_batch(range(50))
    async for message in queue.consume():
        await message.delete()
        break
    assert len(await queue.read(49, wait=20)) > 0


def test_receive_waits_so_long_and_no_longer(queue):
    with queue.consume() as messages:
        assert messages.receive(timeout=0.05) is None
        queue.send("now")
        message = messages.receive(timeout=30)
        assert message.message == "now"
        assert message.archive() == "DONE"


def test_messages_settle_themselves_in_every_way(queue, client):
    failed = client.queue(f"{queue.name}_failed")
    failed.create()
    from pgmq_grpc import DeadLetterPolicy

    queue.update(QueuePolicy(dead_letter=DeadLetterPolicy(failed.name, max_receives=5)))
    queue.send_batch(range(4))
    with queue.consume() as messages:
        deleted, archived, released, lettered = (messages.receive(30) for _ in range(4))
        assert deleted.delete() == "DONE"
        assert archived.archive() == "DONE"
        assert released.extend(100) == "DONE"
        assert released.release() == "DONE"
        assert lettered.dead_letter("why not") == "DONE"
        again = messages.receive(30)
        assert (again.msg_id, again.read_ct) == (released.msg_id, 2)
        assert released.delete() == "STALE"
        assert again.delete() == "DONE"
    assert queue.metrics(include_archive=True).archive_length == 1
    assert failed.metrics().queue_length == 1


def test_at_most_so_many_are_unsettled(queue):
    queue.send_batch(range(10))
    with queue.consume(max_in_flight=3) as messages:
        held = [messages.receive(30) for _ in range(3)]
        assert messages.receive(0.3) is None
        held[0].delete()
        assert messages.receive(30).message == 3


def test_a_handler_settles_by_how_it_ends(queue):
    queue.update(QueuePolicy(retry_backoff=RetryBackoff(minimum=0.05, maximum=0.1)))
    queue.send_batch(range(20))
    consumer = queue.consume()
    handled, failed, lock = [], set(), threading.Lock()

    def handle(message):
        with lock:
            if message.message % 2 and message.message not in failed:
                failed.add(message.message)
                raise LookupError
            handled.append(message.message)
            if len(handled) == 20:
                consumer.stop()

    consumer.run(handle, concurrency=4, action="ARCHIVE")
    assert sorted(handled) == list(range(20))
    assert queue.metrics(include_archive=True).archive_length == 20


def test_a_retry_delay_hides_what_a_handler_has_refused(queue):
    queue.send("fails")
    consumer = queue.consume()

    def handle(message):
        consumer.stop()
        raise LookupError

    consumer.run(handle, retry_delay=100)
    [message] = queue.list_messages()
    assert message.vt.timestamp() - time.time() > 60


def test_a_handler_that_settles_is_left_alone(queue):
    queue.send("keeps")
    consumer = queue.consume()

    def handle(message):
        message.archive()
        consumer.stop()

    consumer.run(handle)
    assert queue.metrics(include_archive=True).archive_length == 1


def test_stop_finishes_what_is_in_hand_and_gives_the_rest_back(queue):
    queue.send_batch(range(30))
    consumer = queue.consume()
    begun, go_on, done = threading.Semaphore(0), threading.Event(), []

    def handle(message):
        begun.release()
        go_on.wait(30)
        done.append(message.message)

    runner = threading.Thread(target=consumer.run, args=(handle,), kwargs={"concurrency": 2})
    runner.start()
    begun.acquire(timeout=30)
    begun.acquire(timeout=30)
    consumer.stop()
    eventually(lambda: queue.metrics().visible_length == 28)
    go_on.set()
    runner.join(30)
    assert sorted(done) == [0, 1]
    assert queue.metrics().queue_length == 28


def test_a_handler_that_would_do_nothing_is_refused(queue):
    async def handle(message):
        pass

    queue.send(1)
    with pytest.raises(TypeError, match="no handler for a Consumer"):
        queue.consume().run(handle)
    assert queue.metrics().visible_length == 1


async def test_a_plain_function_handles_for_asyncio_too(aio, name):
    queue, seen = aio.queue(name), []
    await queue.send(1)
    consumer = queue.consume()

    def handle(message):
        seen.append(message.message)
        consumer.stop()

    await consumer.run(handle)
    assert seen == [1]
    assert (await queue.metrics()).queue_length == 0


async def test_async_handlers_run_at_the_same_time(aio, name):
    queue = aio.queue(name)
    await queue.send_batch(range(8))
    consumer, together, seen = queue.consume(), asyncio.Event(), []

    async def handle(message):
        seen.append(message.message)
        if len(seen) == 8:
            together.set()
        await together.wait()
        consumer.stop()

    await asyncio.wait_for(consumer.run(handle, concurrency=8), 30)
    assert (await queue.metrics()).queue_length == 0


async def test_cancelling_a_run_gives_messages_back(aio, name):
    queue = aio.queue(name)
    await queue.send_batch(range(3))
    begun = asyncio.Event()

    async def handle(message):
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(queue.consume().run(handle, concurrency=2))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(await queue.read(10, wait=10)) == 3


def test_a_consumer_survives_broken_connections(proxy, queue):
    queue.send_batch(range(90))
    seen = []
    with Client(proxy.target) as client, client.queue(queue.name).consume(max_in_flight=10) as messages:
        for message in messages:
            seen.append(message.message)
            if len(seen) % 30 == 15:
                proxy.cut()
            # A message in hand outlives its stream.
            assert message.delete() in {"DONE", "NOT_FOUND"}
            if queue.metrics().queue_length == 0:
                messages.stop()
    assert set(seen) == set(range(90))
    assert proxy.connections > 3


async def test_an_async_consumer_survives_broken_connections(proxy, client, name):
    client.queue(name).send_batch(range(300))
    seen = []
    async with AsyncClient(proxy.target) as aio:
        consumer = aio.queue(name).consume(max_in_flight=20)

        async def handle(message):
            seen.append(message.message)
            if len(seen) % 100 == 50:
                proxy.cut()
            if set(seen) == set(range(300)):
                consumer.stop()

        await asyncio.wait_for(consumer.run(handle, concurrency=5), 60)
    eventually(lambda: client.queue(name).metrics().queue_length == 0, within=60)


def test_what_came_over_a_broken_stream_is_extended_over_the_next_one(proxy, queue):
    queue.send("slow")
    with Client(proxy.target) as client, client.queue(queue.name).consume(visibility_timeout=2) as messages:
        message = messages.receive(30)
        proxy.cut()
        opened = proxy.connections
        eventually(lambda: proxy.connections > opened)
        started = time.time()
        eventually(lambda: next(queue.list_messages()).vt.timestamp() > started + 4)
        assert messages.receive(0.01) is None
        assert message.delete() == "DONE"


def test_a_silent_server_is_left(proxy, queue):
    with Client(proxy.target) as client, client.queue(queue.name).consume(heartbeat_interval=1) as messages:
        queue.send(1)
        messages.receive(30).delete()
        proxy.is_deaf = True
        opened = proxy.connections
        eventually(lambda: messages._session.ended or messages._session.abandoned)
        proxy.is_deaf = False
        proxy.cut()
        eventually(lambda: proxy.connections > opened)
        queue.send(2)
        assert messages.receive(30).message == 2


def test_a_consumer_waits_for_a_server_that_is_not_there_yet(proxy, queue):
    proxy.refuses = True
    queue.send("early")
    with Client(proxy.target) as client, client.queue(queue.name).consume() as messages:
        assert messages.receive(0.3) is None
        proxy.refuses = False
        assert messages.receive(30).message == "early"


def test_a_missing_queue_ends_a_consumer_with_its_error(client):
    for _ in range(2):
        with pytest.raises(PgmqError) as caught, client.queue("nowhere_at_all").consume() as messages:
            next(iter(messages))
        assert caught.value.reason == "QUEUE_NOT_FOUND"


def test_a_dropped_queue_ends_a_consumer_with_its_error(client, name):
    other = client.queue(f"{name}_other")
    other.create()
    other.send(1)
    with other.consume() as messages:
        messages.receive(30).delete()
        other.drop()
        with pytest.raises(PgmqError) as caught:
            messages.receive(30)
    assert caught.value.reason == "QUEUE_NOT_FOUND"


def test_messages_can_be_settled_after_the_consumer_has_ended(queue):
    queue.send_batch([1, 2])
    with queue.consume() as messages:
        held = [messages.receive(30), messages.receive(30)]
    assert held[0].delete() == "DONE"
    assert held[1].extend() == "DONE"
    assert held[1].release() == "DONE"


def test_a_client_that_closes_ends_its_consumers(queue):
    queue.send_batch(range(5))
    client = Client()
    consumer = client.queue(queue.name).consume()
    assert consumer.receive(30) is not None
    client.close()
    assert consumer.receive(30) is None
    eventually(lambda: queue.metrics().visible_length == 4)


def test_a_restart_of_the_server_is_not_noticed(queue):
    queue.send_batch(range(50))
    pid_file = Path(os.environ["PGMQ_GRPC_SERVER_PID_FILE"])
    consumer, seen, lock = queue.consume(max_in_flight=5), set(), threading.Lock()

    def handle(message):
        with lock:
            seen.add(message.message)
            if len(seen) == 10:
                os.kill(int(pid_file.read_text()), signal.SIGTERM)
            if len(seen) == 50:
                consumer.stop()

    consumer.run(handle, concurrency=2)
    eventually(lambda: queue.metrics().queue_length == 0, within=60)


def test_a_watcher_tells_what_happens(proxy, queue):
    with Client(proxy.target) as client, client.queue(queue.name).watch() as events:
        queue.send(1)
        kinds = {events.receive(30).kind, events.receive(30).kind}
        assert kinds == {"SENT", "VISIBLE"}
        proxy.cut()
        # What happens while there is no stream is not told.
        eventually(lambda: queue.send(2) and events.receive(0.2))


def test_a_watcher_of_a_missing_queue_fails_at_once(client):
    with pytest.raises(PgmqError) as caught, client.watch(["nowhere_at_all"]):
        pass
    assert caught.value.reason == "QUEUE_NOT_FOUND"


def test_a_watcher_gives_up_where_there_is_no_server(proxy, queue):
    proxy.refuses = True
    with Client(proxy.target, timeout=0.5) as client:
        with pytest.raises(PgmqError) as caught, client.queue(queue.name).watch():
            pass
        assert caught.value.is_temporary


def test_at_most_so_many_are_unsettled_over_two_streams(proxy, queue):
    queue.send_batch(range(9))
    with Client(proxy.target) as client, client.queue(queue.name).consume(max_in_flight=3) as messages:
        held = [messages.receive(30) for _ in range(3)]
        proxy.cut()
        # The next stream has brought what it may, beside what is in hand.
        eventually(lambda: messages._session.started and queue.metrics().in_flight_length == 6)
        assert messages.receive(0.5) is None
        assert held.pop().delete() == "DONE"
        held.append(messages.receive(30))
        assert held[-1].message == 3
        assert messages.receive(0.5) is None
        deleted = 1
        while deleted < 9:
            message = held.pop() if held else messages.receive(30)
            assert message.delete() == "DONE"
            deleted += 1
    assert queue.metrics().queue_length == 0


def test_what_is_held_back_is_given_back_by_stop(proxy, queue):
    queue.send_batch(range(9))
    with Client(proxy.target) as client, client.queue(queue.name).consume(max_in_flight=3) as messages:
        held = [messages.receive(30) for _ in range(3)]
        proxy.cut()
        eventually(lambda: messages._session.started and queue.metrics().in_flight_length == 6)
        messages.stop()
        eventually(lambda: queue.metrics().visible_length == 6)
        assert [message.delete() for message in held] == ["DONE"] * 3


def test_what_a_handler_finishes_after_the_stream_has_broken_is_settled(proxy, queue):
    queue.send("slow")
    begun, go_on = threading.Event(), threading.Event()

    def handle(message):
        begun.set()
        go_on.wait(30)

    with Client(proxy.target) as client:
        consumer = client.queue(queue.name).consume()
        runner = threading.Thread(target=consumer.run, args=(handle,))
        runner.start()
        assert begun.wait(30)
        consumer.stop()
        proxy.cut()
        eventually(lambda: consumer._session.ended)
        go_on.set()
        runner.join(30)
        assert not runner.is_alive()
    assert queue.metrics().queue_length == 0


def test_a_consumer_survives_what_the_application_raises_for_metadata(proxy, queue):
    asked, has_token = [], threading.Event()

    def metadata():
        asked.append(has_token.is_set())
        if not has_token.is_set():
            raise LookupError("no token")
        return {}

    queue.send_batch([1, 2])
    with Client(proxy.target, metadata=metadata) as client, client.queue(queue.name).consume() as messages:
        eventually(lambda: len(asked) > 1)
        has_token.set()
        first = messages.receive(30)
        has_token.clear()
        proxy.cut()
        eventually(lambda: not asked[-1])
        before = len(asked)
        with ThreadPoolExecutor(1) as pool:
            deleted = pool.submit(first.delete)
            # It is settled by a call while there is no stream, or by the next stream.
            eventually(lambda: len(asked) > before + 1)
            has_token.set()
            assert deleted.result(30) == "DONE"
        assert messages.receive(30).delete() == "DONE"


def test_what_the_application_raises_for_metadata_is_the_error_of_a_send(queue):
    def metadata():
        raise LookupError("no token")

    with (
        Client(metadata=metadata) as client,
        pytest.raises(LookupError),
        client.queue(queue.name).producer() as producer,
    ):
        producer.send(1)


def test_a_handler_of_signals_may_stop_a_consumer(queue):
    queue.send_batch(range(3))
    consumer = queue.consume()
    before = signal.signal(signal.SIGUSR1, lambda *_: consumer.stop())
    try:
        consumer.run(lambda _: os.kill(os.getpid(), signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    eventually(lambda: queue.metrics().in_flight_length == 0)


def test_waiting_costs_no_processor_time(queue):
    with queue.consume(heartbeat_interval=1) as messages, queue.producer() as producer, queue.watch():
        producer.send(1)
        messages.receive(30).delete()
        before = time.process_time()
        assert messages.receive(1.5) is None
        assert time.process_time() - before < 0.75


def test_what_came_before_is_extended_while_others_are_settled(proxy, queue):
    queue.send("slow")
    with Client(proxy.target) as client, client.queue(queue.name).consume(visibility_timeout=2) as messages:
        slow = messages.receive(30)
        proxy.cut()
        started = time.time()
        while time.time() < started + 3:
            queue.send("quick")
            messages.receive(30).delete()
        assert slow.delete() == "DONE"
