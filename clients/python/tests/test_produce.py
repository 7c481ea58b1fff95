"""Producers: many callers, one stream."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from harness import eventually

from pgmq_grpc import AsyncClient, Client, OutgoingMessage, PgmqError


def test_many_threads_share_a_producer(queue):
    with queue.producer() as producer, ThreadPoolExecutor(16) as pool:
        results = list(pool.map(producer.send, range(500)))
    assert sorted(result.msg_id for result in results) == list(range(1, 501))
    assert {each.message for each in queue.list_messages(page_size=1000)} == set(range(500))


async def test_many_tasks_share_a_producer(aio, name):
    async with aio.queue(name).producer() as producer:
        results = await asyncio.gather(*(producer.send(number, headers={"n": number}) for number in range(2000)))
    assert sorted(result.msg_id for result in results) == list(range(1, 2001))


def test_each_message_has_its_own_result(queue):
    with queue.producer() as producer:
        outcomes = [
            producer.submit(each)
            for each in [1, OutgoingMessage(2, delay=-1), OutgoingMessage(3, deduplication_id="three"), 4]
        ]
        again = producer.send(3, deduplication_id="three")
    with pytest.raises(PgmqError) as caught:
        outcomes[1].result()
    assert caught.value.reason == "INVALID_DURATION"
    assert not caught.value.outcome_unknown
    assert [outcomes[0].result().msg_id, outcomes[2].result(), outcomes[3].result().msg_id][0] == 1
    assert again.deduplicated
    assert again.msg_id == outcomes[2].result().msg_id


def test_a_missing_queue_is_each_messages_error(client):
    with client.queue("nowhere_at_all").producer() as producer, pytest.raises(PgmqError) as caught:
        producer.send(1)
    assert caught.value.reason == "QUEUE_NOT_FOUND"


def test_large_messages_travel_in_frames_of_their_own(queue):
    with queue.producer() as producer:
        futures = [producer.submit("x" * 700_000) for _ in range(6)]
        assert [future.result().msg_id for future in futures] == [1, 2, 3, 4, 5, 6]


def test_send_waits_while_too_much_is_outstanding(proxy, queue):
    with Client(proxy.target) as client, client.queue(queue.name).producer(max_outstanding=3) as producer:
        producer.send(0)
        proxy.is_deaf = True
        for number in range(3):
            producer.submit(number)
        fourth = threading.Thread(target=producer.submit, args=(3,))
        fourth.start()
        fourth.join(0.3)
        assert fourth.is_alive()
        proxy.is_deaf = False
        proxy.cut()
        fourth.join(30)
        assert not fourth.is_alive()


def test_named_messages_are_stored_once_whatever_breaks(proxy, queue):
    with Client(proxy.target) as client, client.queue(queue.name).producer(idempotent=True) as producer:
        futures = []
        for number in range(2000):
            futures.append(producer.submit(number))
            if number % 400 == 200:
                futures[number - 100].result()
                proxy.cut()
        ids = {future.result(60).msg_id for future in futures}
    assert len(ids) == 2000
    assert sorted(each.message for each in queue.list_messages(page_size=1000)) == list(range(2000))


async def test_named_messages_of_tasks_are_too(proxy, client, name):
    async with AsyncClient(proxy.target) as aio, aio.queue(name).producer(idempotent=True) as producer:

        async def send(number):
            if number % 400 == 200:
                proxy.cut()
            return await producer.send(number)

        await asyncio.wait_for(asyncio.gather(*map(send, range(1500))), 60)
    assert sorted(each.message for each in client.queue(name).list_messages(page_size=1000)) == list(range(1500))


def test_messages_without_a_name_fail_with_an_unknown_outcome(proxy, queue):
    with Client(proxy.target) as client, client.queue(queue.name).producer() as producer:
        producer.send("before")
        proxy.is_deaf = True
        future = producer.submit("lost answer")
        eventually(lambda: queue.metrics().queue_length == 2)
        proxy.cut()
        with pytest.raises(PgmqError) as caught:
            future.result(30)
        assert caught.value.outcome_unknown
        proxy.is_deaf = False
        proxy.cut()
        producer.send("after")


def test_messages_fail_when_no_server_comes_in_time(proxy, queue):
    proxy.refuses = True
    with (
        Client(proxy.target, timeout=1) as client,
        client.queue(queue.name).producer() as producer,
        pytest.raises(PgmqError) as caught,
    ):
        producer.send(1)
    assert not caught.value.outcome_unknown or caught.value.reason == ""


def test_a_closed_producer_takes_nothing(queue):
    producer = queue.producer()
    with producer:
        producer.send(1)
    with pytest.raises(RuntimeError, match="closed"):
        producer.send(2)


def test_closing_waits_for_what_is_under_way(queue):
    producer = queue.producer()
    futures = [producer.submit(number) for number in range(1000)]
    producer.close()
    assert all(future.done() for future in futures)
    assert queue.metrics().queue_length == 1000


def test_what_may_be_stored_stays_unknown_though_later_tries_do_not_leave(proxy, queue):
    with Client(proxy.target, timeout=1) as client, client.queue(queue.name).producer(idempotent=True) as producer:
        producer.send("before")
        proxy.is_deaf = True
        future = producer.submit("lost answer")
        eventually(lambda: queue.metrics().queue_length == 2)
        proxy.refuses = True
        proxy.cut()
        assert future.exception(60).outcome_unknown


def test_a_message_that_no_request_can_hold_harms_no_other(queue):
    with queue.producer() as producer:
        before = [producer.submit(number) for number in range(10)]
        with pytest.raises(PgmqError) as caught:
            producer.submit("x" * (9 << 20))
        after = [producer.submit(number) for number in range(10)]
        assert [future.result(60).msg_id for future in before + after] == list(range(1, 21))
    assert (caught.value.code, caught.value.reason, caught.value.outcome_unknown) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "MESSAGE_TOO_LARGE",
        False,
    )


def test_a_send_has_a_deadline(proxy, queue):
    with Client(proxy.target, timeout=1) as client, client.queue(queue.name).producer(max_outstanding=2) as producer:
        producer.send("before")
        proxy.is_deaf = True
        producer.submit("first")
        failures = []
        for message in ("second", "no place"):
            with pytest.raises(PgmqError) as caught:
                producer.send(message)
            failures.append((caught.value.code, caught.value.outcome_unknown))
        assert failures == [(grpc.StatusCode.DEADLINE_EXCEEDED, True), (grpc.StatusCode.DEADLINE_EXCEEDED, False)]
    eventually(lambda: queue.metrics().queue_length == 3)


async def test_a_send_of_a_task_has_a_deadline(proxy, client, name):
    async with AsyncClient(proxy.target, timeout=1) as aio, aio.queue(name).producer(max_outstanding=1) as producer:
        await producer.send("before")
        proxy.is_deaf = True
        sends = [producer.send(message) for message in ("first", "no place")]
        failures = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), 30)
    assert [(each.code, each.outcome_unknown) for each in failures] == [
        (grpc.StatusCode.DEADLINE_EXCEEDED, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, False),
    ]
    eventually(lambda: client.queue(name).metrics().queue_length == 2)
