"""Unary calls: what they take and give, errors, deadlines and repeats."""

import asyncio
import json
import pickle
import socket
import time
from datetime import datetime, timedelta, timezone
from decimal import Decimal

import grpc
import orjson
import pytest
from harness import TARGET, Proxy, eventually

from pgmq_grpc import (
    AsyncClient,
    Client,
    DeadLetterPolicy,
    JsonText,
    OutgoingMessage,
    PgmqError,
    QueuePolicy,
    RetryBackoff,
    SendResult,
)
from pgmq_grpc.v1.error_pb2 import CommandError


def test_a_server_is_reached_over_a_unix_socket(tmp_path):
    proxy = Proxy(tmp_path / "pgmq.sock")
    with Client(proxy.target) as client:
        assert client.get_server_info().pgmq_version
    asyncio.run(asked_asynchronously(proxy.target))
    assert proxy.connections == 2
    proxy.close()


async def asked_asynchronously(target):
    async with AsyncClient(target) as client:
        assert (await client.get_server_info()).pgmq_version


def test_a_message_is_sent_read_and_settled(queue):
    assert queue.send({"order": 7}, headers={"trace": "t"}) == SendResult(1, False)

    [message] = queue.read(10, visibility_timeout=60)

    assert (message.msg_id, message.read_ct, message.queue) == (1, 1, queue.name)
    assert message.message == {"order": 7}
    assert message.headers == {"trace": "t"}
    assert message.message_text == '{"order": 7}'
    assert message.visibility_timeout == timedelta(seconds=60)
    assert abs(message.enqueued_at - datetime.now(timezone.utc)) < timedelta(minutes=5)
    assert message.delete() == "DONE"
    assert message.delete() == "NOT_FOUND"
    assert message.settled


async def test_the_same_words_work_for_asyncio(aio, name):
    queue = aio.queue(name)
    await queue.send({"order": 7})
    [message] = await queue.read(wait=10)
    assert message.message == {"order": 7}
    assert await message.extend(90) == "DONE"
    assert await message.release() == "DONE"
    [again] = await queue.read(wait=10)
    assert await again.archive() == "DONE"
    assert [each.message.msg_id async for each in queue.list_archived_messages()] == [1]


def test_numbers_keep_their_digits(queue):
    body = {"big": 123456789012345678901234567890, "price": Decimal("12.50"), "half": 0.5, "nested": [Decimal("1E+2")]}
    queue.send(body)
    [message] = queue.read()
    assert message.message == {
        "big": 123456789012345678901234567890,
        "price": Decimal("12.50"),
        "half": Decimal("0.5"),
        "nested": [100],
    }
    assert str(message.message["price"]) == "12.50"


def test_exact_text_goes_in_and_out(queue):
    queue.send(JsonText('{"x": 1.000}'), headers=JsonText('{"y":2}'))
    [message] = queue.read()
    assert message.message_text == '{"x": 1.000}'
    assert message.headers_text == '{"y": 2}'


@pytest.mark.parametrize("body", [None, True, 0, "", "snow \u2603 and \U0001f389", [], {}, [1, "2", None]])
def test_every_kind_of_json_is_a_body(queue, body):
    queue.send(body)
    assert queue.read()[0].message == body


@pytest.mark.parametrize("library", [json, orjson])
def test_the_json_library_can_be_replaced(name, library):
    with Client(json=library) as client:
        client.queue(name).send({"x": 0.5})
        assert type(client.queue(name).read()[0].message["x"]) is float


@pytest.mark.parametrize("body", [float("nan"), {"x": object()}, Decimal("Infinity")])
def test_what_is_no_json_is_refused_before_it_is_sent(queue, body):
    with pytest.raises((TypeError, ValueError)):
        queue.send(body)


def test_settling_takes_messages_receipts_and_ids(queue):
    queue.send_batch(range(4))
    messages = queue.read(4)
    assert queue.delete(messages[0]) == ["DONE"]
    assert queue.archive(messages[1].receipt) == ["DONE"]
    assert queue.delete(messages[2].msg_id) == ["DONE"]
    assert queue.delete([messages[1].receipt, messages[3].receipt]) == ["NOT_FOUND", "DONE"]
    assert messages[0].settled


def test_a_stale_receipt_changes_nothing(queue):
    queue.send(1)
    [first] = queue.read()
    queue.set_visibility_timeout(first, 0)
    [second] = queue.read(wait=10)
    assert first.delete() == "STALE"
    assert second.delete() == "DONE"


def test_a_policy_is_given_changed_and_cleared(client, name):
    failed, queue = client.queue(f"{name}_failed"), client.queue(f"{name}_orders")
    failed.create()
    policy = QueuePolicy(
        default_visibility_timeout=40,
        dead_letter=DeadLetterPolicy(failed.name, max_receives=3),
        retry_backoff=RetryBackoff(minimum=timedelta(seconds=1), maximum=60),
    )
    assert queue.create(policy=policy).created
    assert not queue.create(policy=policy).created
    queue.update(QueuePolicy(default_delay=5), clear=["retry_backoff"])
    found = queue.get().policy
    assert found.default_visibility_timeout == timedelta(seconds=40)
    assert found.dead_letter == DeadLetterPolicy(failed.name, 3)
    assert found.retry_backoff is None
    assert found.default_delay == timedelta(seconds=5)


def test_dead_letters_are_redriven(client, name):
    failed, queue = client.queue(f"{name}_failed"), client.queue(name)
    failed.create()
    queue.update(QueuePolicy(dead_letter=DeadLetterPolicy(failed.name, max_receives=3)))
    queue.send("poison")
    assert queue.read()[0].dead_letter("no total") == "DONE"
    assert failed.read()[0].headers["x-pgmq-dead-letter"]["reason"] == "no total"
    failed.set_visibility_timeout(1, 0)
    eventually(lambda: failed.redrive().moved_count == 1)
    assert [each.message for each in queue.list_messages()] == ["poison"]


def test_an_archive_is_listed_replayed_and_emptied(queue):
    queue.send_batch(["a", "b", "c"])
    queue.archive([1, 2, 3])
    assert [each.message.message for each in queue.list_archived_messages(page_size=1)] == ["a", "b", "c"]
    assert queue.replay(msg_ids=[2]).replayed_count == 1
    assert queue.delete_archived_messages().deleted_count == 2
    assert queue.read(3)[0].message == "b"


def test_lists_come_page_by_page(client, name):
    for number in range(3):
        client.create_queue(f"{name}_{number}")
    assert [info.name for info in client.list_queues(prefix=f"{name}_", page_size=1)] == [
        f"{name}_{number}" for number in range(3)
    ]
    assert [each.queue_length for each in client.list_queue_metrics(prefix=f"{name}_", page_size=2)] == [0, 0, 0]


def test_topics_route_messages(client, queue):
    assert queue.bind_topic(f"{queue.name}.*")
    assert not queue.bind_topic(f"{queue.name}.*")
    result = client.send_topic(f"{queue.name}.created", {"x": 1}, require_match=True)
    assert [(copy.queue, copy.msg_id) for copy in result.copies] == [(queue.name, 1)]
    copies = client.send_topic_batch(f"{queue.name}.created", [2, OutgoingMessage(3)])
    assert [copy.message_index for copy in copies] == [0, 1]
    assert [binding.queue for binding in client.test_routing(f"{queue.name}.created")] == [queue.name]
    assert [binding.pattern for binding in client.list_topic_bindings(queue=queue.name)] == [f"{queue.name}.*"]
    assert queue.unbind_topic(f"{queue.name}.*")


def test_a_transaction_applies_everything_or_nothing(client, queue):
    queue.send("work")
    [message] = queue.read()
    with client.transact(idempotent=True) as transaction:
        transaction.send(queue.name, "result")
        transaction.send_batch(queue.name, [1, 2])
        transaction.delete(queue.name, message)
    assert transaction.results == [SendResult(2, False), [SendResult(3, False), SendResult(4, False)], ["DONE"]]
    assert message.settled

    with pytest.raises(PgmqError) as caught, client.transact() as transaction:
        transaction.send(queue.name, "never")
        transaction.delete(queue.name, message)
    assert caught.value.reason == "RECEIPT_NOT_FOUND"
    assert queue.metrics().queue_length == 3


def test_a_transaction_that_its_block_leaves_by_an_exception_is_not_applied(client, queue):
    with pytest.raises(LookupError), client.transact() as transaction:
        transaction.send(queue.name, "never")
        raise LookupError
    assert queue.metrics().queue_length == 0


def test_an_error_tells_everything(client):
    with pytest.raises(PgmqError) as caught:
        client.queue("nowhere_at_all").send(1)
    error = caught.value
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert error.reason == "QUEUE_NOT_FOUND"
    assert error.metadata["queue"] == "nowhere_at_all"
    assert error.request_id
    assert not error.outcome_unknown
    assert "nowhere_at_all" in str(error)

    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.reason, copy.request_id, str(copy)) == (
        error.code,
        error.reason,
        error.request_id,
        str(error),
    )


def test_a_refused_field_is_named(queue):
    with pytest.raises(PgmqError) as caught:
        queue.send_batch([1, OutgoingMessage(2, delay=-1)])
    assert (caught.value.reason, caught.value.field) == ("INVALID_DURATION", "messages[1].delay")


def test_a_call_that_has_not_left_is_not_of_unknown_outcome():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with Client(f"127.0.0.1:{unused.getsockname()[1]}") as client, pytest.raises(PgmqError) as caught:
            client.queue("orders").send(1)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.reason == ""
    assert not caught.value.outcome_unknown


def test_a_call_whose_answer_is_lost_is_of_unknown_outcome_and_sent_once(proxy, queue):
    with Client(proxy.target, timeout=1) as client:
        client.get_server_info()
        proxy.is_deaf = True
        with pytest.raises(PgmqError) as caught:
            client.queue(queue.name).send("once")
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.outcome_unknown
    eventually(lambda: queue.metrics().queue_length == 1)


def test_an_idempotent_send_survives_a_broken_connection(proxy, queue):
    with Client(proxy.target) as client:
        client.get_server_info()
        proxy.cut()
        for number in range(20):
            client.queue(queue.name).send(number, idempotent=True)
            proxy.cut()
    assert [each.message for each in queue.list_messages()] == list(range(20))


def test_a_deadline_can_be_changed(client, queue):
    started = time.monotonic()
    assert client.with_timeout(timedelta(seconds=1)).queue(queue.name).read(wait=2) == []
    assert time.monotonic() - started >= 1.9


def test_metadata_of_each_call_can_come_from_a_function(name):
    asked = []

    def metadata():
        asked.append(1)
        return {"pgmq-queue": name}

    with Client(metadata=metadata, name="named") as client:
        client.queue(name).send(1)
        with pytest.raises(PgmqError) as caught:
            client.queue("others").send(1)
        assert caught.value.reason == "METADATA_MISMATCH"
        assert len(asked) == 2


def test_interceptors_see_calls(name):
    seen = []

    class Interceptor(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation, client_call_details, request):
            seen.append(client_call_details.method)
            return continuation(client_call_details, request)

    with Client(interceptors=[Interceptor()]) as client:
        client.queue(name).metrics()
    assert [str(method) for method in seen] == ["/pgmq.v1.QueueService/GetQueueMetrics"]


def test_a_closed_client_says_so(name):
    client = Client()
    client.queue(name).metrics()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.queue(name).metrics()


def test_an_async_client_is_made_before_any_event_loop_and_serves_several(name):
    import asyncio

    client = AsyncClient()

    async def use():
        await client.queue(name).send(1)

    asyncio.run(use())
    asyncio.run(use())


def test_raw_stubs_are_at_hand(client):
    from pgmq_grpc.v1 import queue_service_pb2

    reply = client.raw.queue.GetServerInfo(
        queue_service_pb2.GetServerInfoRequest(), metadata=client.metadata(), timeout=client.timeout
    )
    assert reply.server_version


def test_naive_moments_are_refused(queue):
    with pytest.raises(ValueError, match="time zone"):
        queue.send(1, visible_at=datetime(2030, 1, 1))


def test_unknown_words_are_refused_with_those_that_are_known(queue):
    with pytest.raises(ValueError, match="GROUPED_HEAD"):
        queue.read(ordering="SORTED")


def test_the_target_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("PGMQ_GRPC_TARGET", TARGET)
    with Client() as client:
        assert TARGET in repr(client)
        assert client.get_server_info().server_version


@pytest.mark.parametrize(
    ("code", "unknown"),
    [(grpc.StatusCode.UNAVAILABLE, True), (grpc.StatusCode.INTERNAL, True), (grpc.StatusCode.ABORTED, False)],
)
def test_a_reason_newer_than_the_client_is_judged_by_its_code(code, unknown):
    failure = PgmqError.from_command(CommandError(code=code.value[0], reason=9999))
    assert (failure.reason, failure.outcome_unknown) == ("9999", unknown)
