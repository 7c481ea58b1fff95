"""What the methods of PGMQueue do."""

import dataclasses
import enum
import math
import uuid
from datetime import date, datetime, timedelta, timezone

import pytest
from harness import run_program

from pgmq_grpc import PgmqError
from pgmq_grpc.pgmqueue import BatchTopicResult, Message, PGMQueue, QueueMetrics, RoutingResult


def now():
    return datetime.now(timezone.utc)


def test_a_message_is_read_as_a_dataclass_with_its_moments_in_utc(pgmq, name):
    msg_id = pgmq.send(name, {"hello": "world"}, headers={"trace": "t1"})
    message = pgmq.read(name, vt=30)
    assert isinstance(message, Message)
    assert (message.msg_id, message.read_ct, message.message) == (msg_id, 1, {"hello": "world"})
    assert message.headers == {"trace": "t1"}
    assert message.enqueued_at.tzinfo == message.vt.tzinfo == timezone.utc
    # Postgres asks its clock for each of them.
    assert timedelta(seconds=29) < message.vt - message.last_read_at < timedelta(seconds=31)
    assert repr(message).startswith(
        f"Message(msg_id={msg_id}, read_ct=1, enqueued_at={message.enqueued_at.isoformat()}"
    )


@pytest.mark.parametrize(
    "payload", [{}, [], [1, "two", None], "text", "", 5, -1.5, 10**30, True, None, {"deep": [{"ü": "\U0001f600"}]}]
)
def test_any_json_value_is_a_payload(pgmq, name, payload):
    pgmq.send(name, payload)
    pgmq.send_batch(name, [payload, payload])
    assert [message.message for message in pgmq.read(name, qty=5)] == [payload] * 3


def test_what_orjson_writes_is_written_the_same(pgmq, name):
    colour = enum.Enum("colour", {"RED": "red"})
    point = dataclasses.make_dataclass("point", ["x"])
    identity = uuid.UUID(int=7)
    pgmq.send(name, {"on": date(2024, 2, 29), "who": identity, "is": colour.RED, "at": point(1), "not": [math.nan]})
    assert pgmq.read(name).message == {
        "on": "2024-02-29", "who": str(identity), "is": "red", "at": {"x": 1}, "not": [None],
    }  # fmt: skip
    with pytest.raises(TypeError):
        pgmq.send(name, object())


def test_headers_may_be_empty_or_absent_for_each_message(pgmq, name):
    pgmq.send(name, 1, headers={})
    pgmq.send_batch(name, [2, 3], headers=[{"n": 2}, None])
    assert [message.headers for message in pgmq.read(name, qty=3)] == [{}, {"n": 2}, None]
    with pytest.raises(ValueError, match="must match"):
        pgmq.send_batch(name, [1, 2], headers=[{}])


def test_a_delay_is_a_number_of_seconds_or_a_moment_and_tz_is_its_older_name(pgmq, name):
    pgmq.send(name, "later", delay=60)
    pgmq.send(name, "at", delay=now() + timedelta(seconds=60))
    pgmq.send(name, "naive", delay=(now() + timedelta(seconds=60)).replace(tzinfo=None))
    pgmq.send(name, "older name", delay=-5, tz=60)
    pgmq.send(name, "past", delay=now() - timedelta(days=1))
    pgmq.send(name, "negative", delay=-5)
    pgmq.send_batch(name, ["batch"], delay=60)
    assert {message.message for message in pgmq.read(name, qty=10)} == {"past", "negative"}
    assert pgmq.metrics(name).queue_length == 7


@pytest.mark.parametrize("count", [1_000, 1_001, 2_500])
def test_a_batch_of_any_length_is_sent_in_order(pgmq, name, count):
    ids = pgmq.send_batch(name, [{"n": n} for n in range(count)], headers=[{"n": n} for n in range(count)])
    assert len(ids) == count
    assert ids == sorted(ids)
    messages = pgmq.read(name, qty=count + 10)
    assert [message.message["n"] for message in messages] == list(range(count))
    assert pgmq.delete_batch(name, ids) == ids
    assert pgmq.metrics(name).queue_length == 0


def test_a_batch_of_many_bytes_is_sent_and_read_as_a_whole(pgmq, name):
    ids = pgmq.send_batch(name, [f"{n}" * 200_000 for n in range(9)] * 6)
    assert len(ids) == 54
    assert [len(message.message) for message in pgmq.read(name, qty=100)] == [200_000] * 54
    assert len(pgmq.set_vt(name, ids, 0)) == 54
    assert len(pgmq.pop(name, qty=100)) == 54


def test_a_batch_beyond_one_call_is_stored_as_a_whole_or_not_at_all(pgmq, name):
    too_large = "x" * 2_000_000
    with pytest.raises(PgmqError) as raised:
        pgmq.send_batch(name, [*range(1_500), too_large])
    assert raised.value.reason == "MESSAGE_TOO_LARGE"
    assert pgmq.metrics(name).queue_length == 0


def test_empty_batches_do_nothing(pgmq, name):
    assert pgmq.send_batch(name, []) == []
    assert pgmq.send_batch_topic("nobody", []) == []
    assert pgmq.delete_batch(name, []) == []
    assert pgmq.archive_batch(name, []) == []
    assert pgmq.set_vt(name, [], 10) == []
    assert pgmq.read(name, qty=0) == []


def test_one_is_asked_for_by_qty_1_and_more_come_as_a_list(pgmq, name):
    assert pgmq.read(name) is None
    assert pgmq.pop(name) is None
    assert pgmq.read(name, qty=2) == []
    assert pgmq.read_batch(name) == []
    assert pgmq.pop(name, qty=2) == []
    pgmq.send_batch(name, [1, 2, 3, 4, 5])
    assert pgmq.pop(name).message == 1
    assert [message.message for message in pgmq.pop(name, qty=2)] == [2, 3]
    assert [message.message for message in pgmq.read_batch(name, vt=30, batch_size=1)] == [4]
    assert [message.message for message in pgmq.read(name, qty=None)] == [5]


def test_a_read_may_have_a_condition(pgmq, name):
    pgmq.send_batch(name, [{"kind": "a"}, {"kind": "b", "n": 1}])
    assert pgmq.read(name, conditional={"kind": "b"}).message == {"kind": "b", "n": 1}
    assert pgmq.read_with_poll(name, max_poll_seconds=0, conditional={"kind": "c"}) == []


def test_a_read_with_poll_waits_for_the_first_message(pgmq, name):
    pgmq.send(name, "soon", delay=1)
    assert [message.message for message in pgmq.read_with_poll(name, qty=3, max_poll_seconds=30)] == ["soon"]


def test_grouped_reads_keep_groups_together_or_take_turns(pgmq, name):
    pgmq.create_fifo_index(name)
    headers = [{"x-pgmq-group": group} for group in "aabb"]
    pgmq.send_batch(name, [1, 2, 3, 4], headers=headers)
    assert [message.message for message in pgmq.read_grouped_rr(name, qty=2)] == [1, 3]
    pgmq.set_vt(name, [1, 3], 0)
    assert [message.message for message in pgmq.read_grouped(name, qty=2)] == [1, 2]
    assert [message.message for message in pgmq.read_grouped_with_poll(name, qty=2, max_poll_seconds=1)] == [3, 4]
    assert pgmq.read_grouped_rr_with_poll(name, max_poll_seconds=0) == []


def test_settling_tells_what_was_there(pgmq, name):
    first, second, third = pgmq.send_batch(name, [1, 2, 3])
    assert pgmq.delete(name, first) is True
    assert pgmq.delete(name, first) is False
    assert pgmq.archive(name, second) is True
    assert pgmq.archive(name, second) is False
    assert pgmq.delete_batch(name, [third, third, 999]) == [third]
    fourth, fifth = pgmq.send_batch(name, [4, 5])
    assert pgmq.archive_batch(name, [fifth, fourth, 999]) == [fifth, fourth]
    pgmq.send_batch(name, [6, 7])
    assert pgmq.purge(name) == 2


def test_a_visibility_timeout_is_set_for_one_or_for_many(pgmq, name):
    ids = pgmq.send_batch(name, [1, 2])
    message = pgmq.set_vt(name, ids[0], 60)
    assert message.msg_id == ids[0]
    assert 50 < (message.vt - now()).total_seconds() < 70
    moment = now() + timedelta(minutes=5)
    assert [each.vt for each in pgmq.set_vt(name, tuple(ids), moment)] == [moment, moment]
    assert pgmq.set_vt(name, 999, 5) is None
    assert pgmq.read(name) is None
    assert pgmq.set_vt(name, [*ids, 999], -1)[1].message == 2
    assert len(pgmq.read(name, qty=5)) == 2


def test_queues_of_all_kinds_are_created_listed_and_dropped(pgmq, name):
    assert pgmq.create_queue(f"{name}_u", unlogged=True) is None
    # As in pgmq, a queue that is there stays what it is.
    pgmq.create_queue(f"{name}_u")
    found = {record.queue_name: record for record in pgmq.list_queues()}
    assert found[f"{name}_u"].is_unlogged
    assert not found[name].is_unlogged
    assert not found[name].is_partitioned
    assert str(found[name]) == name
    assert abs((now() - found[name].created_at).total_seconds()) < 600
    assert pgmq.drop_queue(f"{name}_u") is True
    assert pgmq.drop_queue(f"{name}_u") is False
    assert pgmq.validate_queue_name(name) is True
    with pytest.raises(PgmqError) as raised:
        pgmq.validate_queue_name("x" * 48)
    assert raised.value.reason == "INVALID_QUEUE_NAME"


def test_a_partitioned_queue_needs_partman(pgmq, client, name):
    arguments = {"partition_interval": 1000, "retention_interval": "100000"}
    if "partman" in client.get_server_info().capabilities:
        pgmq.create_partitioned_queue(f"{name}_p", **arguments)
        assert {record.queue_name for record in pgmq.list_queues() if record.is_partitioned} >= {f"{name}_p"}
        return
    for call, queue in ((pgmq.create_partitioned_queue, f"{name}_p"), (pgmq.convert_archive_partitioned, name)):
        with pytest.raises(PgmqError) as raised:
            call(queue, **arguments)
        assert raised.value.reason == "PARTMAN_NOT_INSTALLED"


def test_metrics_count_messages(pgmq, name):
    pgmq.send_batch(name, [1, 2, 3])
    pgmq.read(name)
    metrics = pgmq.metrics(name)
    assert isinstance(metrics, QueueMetrics)
    assert (metrics.queue_name, metrics.queue_length, metrics.queue_visible_length) == (name, 3, 2)
    assert metrics.total_messages == 3
    assert 0 <= metrics.newest_msg_age_sec <= metrics.oldest_msg_age_sec < 600
    pgmq.purge(name)
    empty = next(each for each in pgmq.metrics_all() if each.queue_name == name)
    assert (empty.queue_length, empty.newest_msg_age_sec, empty.oldest_msg_age_sec) == (0, None, None)
    with pytest.raises(PgmqError) as raised:
        pgmq.metrics(f"{name}_missing")
    assert raised.value.reason == "QUEUE_NOT_FOUND"


def test_topics_send_to_every_queue_that_matches(pgmq, name):
    other = f"{name}_b"
    pgmq.create_queue(other)
    key = f"{name}.created"
    assert pgmq.bind_topic(f"{name}.*", name) is None
    pgmq.bind_topic(f"{name}.#", other)
    assert pgmq.send_topic(key, {"n": 1}, headers={"h": 1}) == 2
    assert pgmq.send_topic(key, {"n": 2}, delay=60) == 2
    copies = pgmq.send_batch_topic(key, [3, 4], headers=[{"h": 3}, {"h": 4}])
    assert copies == [
        BatchTopicResult(name, 3), BatchTopicResult(name, 4), BatchTopicResult(other, 3), BatchTopicResult(other, 4),
    ]  # fmt: skip
    assert len(pgmq.send_batch_topic(key, list(range(1_200)))) == 2_400
    assert pgmq.read(name).headers == {"h": 1}
    assert pgmq.send_topic(f"unbound.{name}", 1) == 0
    matches = pgmq.test_routing(key)
    assert [(match.pattern, match.queue_name) for match in matches] == [(f"{name}.#", other), (f"{name}.*", name)]
    assert isinstance(matches[0], RoutingResult)
    assert [binding.pattern for binding in pgmq.list_topic_bindings(name)] == [f"{name}.*"]
    assert {binding.queue_name for binding in pgmq.list_topic_bindings()} >= {name, other}
    assert pgmq.unbind_topic(f"{name}.*", name) is True
    assert pgmq.unbind_topic(f"{name}.*", name) is False


def test_names_of_topics_are_checked(pgmq):
    assert pgmq.validate_routing_key("orders.created") is True
    assert pgmq.validate_routing_key("orders..created") is False
    assert pgmq.validate_topic_pattern("orders.*") is True
    assert pgmq.validate_topic_pattern("orders.**") is False
    assert pgmq.validate_topic_pattern("") is False


def test_notifications_of_postgres_are_set_up(pgmq, name):
    pgmq.enable_notify(name)
    pgmq.update_notify(name, throttle_interval_ms=500)
    setting = next(each for each in pgmq.list_notify_throttles() if each.queue_name == name)
    assert setting.throttle_interval_ms == 500
    assert setting.last_notified_at == datetime(1970, 1, 1, tzinfo=timezone.utc)
    pgmq.disable_notify(name)
    assert name not in {each.queue_name for each in pgmq.list_notify_throttles()}


def test_a_detached_archive_is_still_an_archive(pgmq, name):
    pgmq.detach_archive(name)
    assert pgmq.archive(name, pgmq.send(name, 1)) is True


def test_a_queue_that_is_missing_is_an_error(pgmq, name):
    for call in (pgmq.read, pgmq.pop, pgmq.purge):
        with pytest.raises(PgmqError) as raised:
            call(f"{name}_missing")
        assert raised.value.reason == "QUEUE_NOT_FOUND"


FORKS = """
import multiprocessing
from pgmq_grpc import PGMQueue

def send_and_read(number):
    queue.send("NAME", number)
    assert queue.read("NAME") is not None

with PGMQueue() as queue:
    send_and_read(0)
    children = [multiprocessing.get_context("fork").Process(target=send_and_read, args=(n,)) for n in range(1, 4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    print([child.exitcode for child in children], queue.metrics("NAME").queue_length)
"""


def test_an_object_is_used_in_forked_processes(name):
    assert run_program(FORKS.replace("NAME", name)) == "[0, 0, 0] 4\n"


async def test_the_asynchronous_class_does_the_same(async_pgmq, name):
    queue = async_pgmq
    ids = await queue.send_batch(name, [{"n": n} for n in range(1_100)])
    assert len(ids) == 1_100
    assert len(await queue.read(name, qty=1_200)) == 1_100
    assert await queue.delete_batch(name, ids) == ids
    assert await queue.send(name, None, headers={"h": 1}, delay=0) == 1_101
    message = await queue.read(name)
    assert (message.message, message.headers) == (None, {"h": 1})
    assert (await queue.set_vt(name, message.msg_id, 0)).msg_id == 1_101
    assert (await queue.pop(name)).message is None
    assert await queue.pop(name) is None
    assert await queue.archive(name, 5) is False
    assert (await queue.metrics(name)).queue_length == 0
    assert await queue.read_with_poll(name, max_poll_seconds=0) == []
    await queue.bind_topic(name, name)
    assert await queue.send_topic(name, 1) == 1
    assert [each.queue_name for each in await queue.send_batch_topic(name, [2])] == [name]
    assert await queue.validate_routing_key("a..b") is False
    assert name in {record.queue_name for record in await queue.list_queues()}
    with pytest.raises(PgmqError):
        await queue.send_batch(name, [*range(1_500), "x" * 2_000_000])
    assert (await queue.metrics(name)).queue_length == 2


def test_both_classes_have_the_same_methods():
    from pgmq_grpc.pgmqueue import AsyncPGMQueue

    plain = {name for name in vars(PGMQueue) if not name.startswith("_")}
    assert {name for name in vars(AsyncPGMQueue) if not name.startswith("_")} == plain | {"init"}
