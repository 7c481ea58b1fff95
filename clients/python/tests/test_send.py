"""Sends of one client at the same time: they share a stream, and nobody notices."""

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import grpc
import pytest
from harness import eventually

from pgmq_grpc import AsyncClient, Client, OutgoingMessage, PgmqError


class Watched(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Knows which methods a client calls, and can send those of streams astray."""

    def __init__(self) -> None:
        self.methods = []
        self.streams_fail = False

    def intercept_unary_unary(self, continuation, details, request):
        self.methods.append(str(details.method).rpartition("/")[2])
        return continuation(details, request)

    def intercept_stream_stream(self, continuation, details, requests):
        self.methods.append(str(details.method).rpartition("/")[2])
        if self.streams_fail:
            details = details._replace(metadata=[("pgmq-client", "x" * 200)])
        return continuation(details, requests)


@pytest.fixture
def watched():
    return Watched()


@pytest.fixture
def sender(watched, name):
    """A queue of a client that is watched."""
    with Client(interceptors=[watched]) as client:
        yield client.queue(name)


def at_once(queue, messages, **settings):
    """Sends messages by a thread for each, and gives the futures of their results."""
    with ThreadPoolExecutor(max(len(messages), 1)) as pool:
        together = threading.Barrier(len(messages))

        def send(message):
            together.wait(60)
            return queue.send(message, **settings)

        return [pool.submit(send, message) for message in messages]


def bodies(queue):
    return sorted(each.message for each in queue.list_messages(page_size=1000))


def test_a_lone_send_is_a_call(sender, watched):
    for number in range(3):
        assert sender.send(number).msg_id == number + 1
    assert watched.methods == ["Send"] * 3


def test_threads_share_a_stream_and_each_has_its_own_id(sender, watched):
    results = {number: future.result().msg_id for number, future in enumerate(at_once(sender, range(50)))}
    assert sorted(results.values()) == list(range(1, 51))
    assert {each.message: each.msg_id for each in sender.list_messages(page_size=100)} == results
    assert watched.methods.count("Produce") == 1
    assert watched.methods.count("Send") < 50


async def test_tasks_share_a_stream_and_each_has_its_own_id(aio, name):
    queue = aio.queue(name)
    results = await asyncio.gather(*map(queue.send, range(500)))
    stored = {each.message: each.msg_id async for each in queue.list_messages(page_size=1000)}
    assert stored == {number: result.msg_id for number, result in enumerate(results)}


async def test_a_bad_message_has_its_own_error_and_hurts_no_other(aio, name):
    queue, missing = aio.queue(name), aio.queue("nowhere_at_all")
    bad = [OutgoingMessage(0, delay=-1), OutgoingMessage(0, headers=[])]
    sends = [
        *(queue.send(number) for number in range(20)),
        *map(queue.send, bad),
        *(missing.send(0) for _ in range(2)),
    ]
    *good, delay, headers, gone, gone_too = await asyncio.gather(*sends, return_exceptions=True)
    assert sorted(result.msg_id for result in good) == list(range(1, 21))
    assert (delay.reason, delay.field, delay.outcome_unknown) == ("INVALID_DURATION", "delay", False)
    assert headers.reason == "INVALID_HEADERS"
    assert gone.reason == gone_too.reason == "QUEUE_NOT_FOUND"

    # As it would have been alone.
    with pytest.raises(PgmqError) as caught:
        await queue.send(bad[0])
    assert (caught.value.code, caught.value.message, caught.value.metadata) == (
        delay.code,
        delay.message,
        delay.metadata,
    )


async def test_all_that_can_be_said_of_a_message_travels(aio, name):
    queue = aio.queue(name)
    said = {"headers": {"h": 1}, "group": "g", "deduplication_id": "d"}
    _, sent, again = await asyncio.gather(queue.send(0), queue.send(1, **said), queue.send(1, **said))
    assert {sent.deduplicated, again.deduplicated} == {False, True}
    assert sent.msg_id == again.msg_id
    [message] = [each async for each in queue.list_messages(msg_ids=[sent.msg_id])]
    assert message.headers == {"h": 1, "x-pgmq-group": "g"}


async def test_who_is_cancelled_harms_no_other(aio, name):
    queue = aio.queue(name)
    sends = [asyncio.ensure_future(queue.send(number)) for number in range(100)]
    await asyncio.sleep(0)
    for send in sends[::2]:
        send.cancel()
    results = await asyncio.gather(*sends, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert len({result.msg_id for result in results[1::2]}) == 50
    # The first one is a call. The others were cancelled before they could leave.
    stored = {each.message async for each in queue.list_messages(page_size=100)}
    assert stored - {0} == set(range(1, 100, 2))


async def test_sends_under_way_are_answered_before_the_client_closes(client, name):
    async with AsyncClient() as aio:
        sends = [asyncio.ensure_future(aio.queue(name).send(number)) for number in range(200)]
        await asyncio.sleep(0)
    assert len({send.result().msg_id for send in sends}) == 200
    with pytest.raises(RuntimeError, match="closed"):
        await aio.queue(name).send(1)


async def test_a_lone_send_is_answered_before_the_client_closes(name):
    async with AsyncClient() as aio:
        send = asyncio.ensure_future(aio.queue(name).send(1))
        await asyncio.sleep(0)
    assert send.result().msg_id == 1


def test_threads_are_answered_before_the_client_closes(queue):
    client = Client()
    with ThreadPoolExecutor(20) as pool:
        sends = [pool.submit(client.queue(queue.name).send, number) for number in range(20)]
        eventually(lambda: queue.metrics().total_messages)
        client.close()
        wait(sends, 60)
    # Those that came too late were refused, and the others were stored.
    failures = [send.exception() for send in sends]
    assert {str(failure) for failure in failures} <= {"None", "the client is closed"}
    assert queue.metrics().queue_length == failures.count(None)


def test_the_stream_ends_when_nobody_sends_and_comes_again(sender, watched, monkeypatch):
    monkeypatch.setattr("pgmq_grpc._sync.lane._IDLE_SECONDS", 0.05)
    for times in (1, 2):
        for future in at_once(sender, range(10)):
            future.result()
        eventually(lambda: not sender._client.streams().lanes and not sender._client.streams().links)
        assert watched.methods.count("Produce") == times
    assert sender.metrics().queue_length == 20


def test_beyond_so_many_queues_sends_are_calls(sender, watched, monkeypatch):
    monkeypatch.setattr("pgmq_grpc._sync.lane._MOST_LANES", 1)
    other = sender._client.queue(f"{sender.name}_other")
    other.create()
    for queue in (sender, other):
        for future in at_once(queue, range(10)):
            future.result()
    assert watched.methods.count("Produce") == 1
    assert (sender.metrics().queue_length, other.metrics().queue_length) == (10, 10)


def test_where_streams_fail_sends_are_calls(sender, watched):
    watched.streams_fail = True
    assert len({future.result().msg_id for future in at_once(sender, range(10))}) == 10
    assert watched.methods.count("Produce") == 1
    assert watched.methods.count("Send") == 10


def test_no_answer_in_time_is_an_unknown_outcome(proxy, queue):
    with Client(proxy.target) as client:
        for future in at_once(client.queue(queue.name), range(5)):
            future.result()
        proxy.is_deaf = True
        failures = [future.exception() for future in at_once(client.with_timeout(1).queue(queue.name), range(5, 10))]
        assert {failure.code for failure in failures} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert all(failure.outcome_unknown for failure in failures)
        proxy.is_deaf = False
        proxy.cut()
    eventually(lambda: bodies(queue) == list(range(10)))


async def test_what_has_not_left_in_time_is_known_not_to_be_stored(proxy, client, name):
    async with AsyncClient(proxy.target, timeout=1) as aio:
        await aio.get_server_info()
        proxy.is_deaf = True
        sends = [asyncio.ensure_future(aio.queue(name).send(number)) for number in range(5)]
        failures = await asyncio.gather(*sends, return_exceptions=True)
        proxy.cut()
    assert {failure.code for failure in failures} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    # The first one is a call of its own, of which nobody knows how far it got.
    assert [failure.outcome_unknown for failure in failures] == [True, False, False, False, False]
    assert set(bodies(client.queue(name))) <= {0}


def test_no_server_is_the_same_error_alone_and_together(proxy, queue):
    proxy.refuses = True
    with Client(proxy.target) as client:
        failures = [future.exception() for future in at_once(client.queue(queue.name), range(5))]
    assert {failure.code for failure in failures} == {grpc.StatusCode.UNAVAILABLE}
    assert not any(failure.outcome_unknown for failure in failures)


def kill_server():
    os.kill(int(Path(os.environ["PGMQ_GRPC_SERVER_PID_FILE"]).read_text()), signal.SIGKILL)


def sends_around_a_kill(queue, **settings):
    """Lets eight threads send while the server is killed, and gives what came of each message."""
    failures = {}
    done = threading.Semaphore(0)

    def send(start):
        for number in range(start, start + 40):
            try:
                queue.send(number, **settings)
                failures[number] = None
            except PgmqError as error:
                failures[number] = error
            done.release()

    with ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(send, 40 * thread) for thread in range(8)]
        for _ in range(60):
            assert done.acquire(timeout=60)
        kill_server()
    for run in runs:
        run.result()
    return failures


def test_what_has_an_id_is_stored_once_though_the_server_is_killed(client, queue):
    failures = sends_around_a_kill(queue, idempotent=True)
    lost = [number for number, failure in failures.items() if failure is not None]
    eventually(lambda: bodies(queue) is not None)
    stored = bodies(queue)
    assert len(stored) == len(set(stored))
    # Nobody waits for a server that is not there. What certainly was not stored is not.
    unknown = {number for number in lost if failures[number].outcome_unknown}
    assert set(stored) - unknown == set(failures) - set(lost)


def test_what_has_no_id_is_stored_or_its_outcome_is_told_though_the_server_is_killed(client, queue):
    failures = sends_around_a_kill(queue)
    stored = bodies(queue)
    assert len(stored) == len(set(stored))
    for number, failure in failures.items():
        if failure is None:
            assert number in stored
        elif not failure.outcome_unknown:
            assert number not in stored


def test_an_event_loop_has_streams_of_its_own(queue):
    aio = AsyncClient()

    async def use(first, close=False):
        await asyncio.gather(*map(aio.queue(queue.name).send, range(first, first + 10)))
        if close:
            await aio.close()

    asyncio.run(use(0))
    asyncio.run(use(10, close=True))
    assert bodies(queue) == list(range(20))


def test_what_may_be_stored_stays_unknown_though_later_tries_do_not_leave(proxy, queue):
    with Client(proxy.target) as client, ThreadPoolExecutor(1) as pool:
        client.get_server_info()
        proxy.is_deaf = True
        send = pool.submit(client.queue(queue.name).send, "lost answer", idempotent=True)
        eventually(lambda: queue.metrics().queue_length == 1)
        proxy.refuses = True
        proxy.cut()
        failure = send.exception(60)
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert failure.outcome_unknown


def test_what_may_be_stored_stays_unknown_though_it_is_refused_later(proxy, client, queue):
    other = client.queue(f"{queue.name}_other")
    other.create()
    with Client(proxy.target) as sender, ThreadPoolExecutor(1) as pool:
        for future in at_once(sender.queue(other.name), range(5)):
            future.result()
        proxy.is_deaf = True
        sends = pool.submit(at_once, sender.queue(other.name), range(5, 10), idempotent=True)
        eventually(lambda: other.metrics().queue_length == 10)
        other.drop()
        proxy.is_deaf = False
        proxy.cut()
        failures = [send.exception() for send in sends.result(60)]
    assert {failure.reason for failure in failures} == {"QUEUE_NOT_FOUND"}
    assert all(failure.outcome_unknown for failure in failures)


def test_a_message_that_no_request_can_hold_harms_no_other(sender):
    *others, large = at_once(sender, [*range(20), "x" * (9 << 20)])
    assert sorted(future.result().msg_id for future in others) == list(range(1, 21))
    assert large.exception().reason == "MESSAGE_TOO_LARGE"


def test_large_messages_are_calls_among_others_too(sender, watched):
    for future in at_once(sender, ["x" * ((1 << 20) - 2)] * 5):
        assert future.result().msg_id
    assert watched.methods == ["Send"] * 5
