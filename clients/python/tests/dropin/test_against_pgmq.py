"""The same programs, run by pgmq-py itself and by its drop-in, on one Postgres: they get the same answers."""

import asyncio
import dataclasses
import inspect
from datetime import datetime, timedelta, timezone

import pgmq
import pytest

from pgmq_grpc import pgmqueue

NAME = "against_pgmq"


@pytest.fixture
def addresses(postgres):
    """A server, and its Postgres as pgmq-py gets its address."""
    target, address = postgres
    return target, {**address, "init_extension": False}


def soon(seconds):
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


# Calls of one program after the other, on a queue that is new.
PROGRAMS = {
    "payloads": [
        *(("send", payload) for payload in ({"a": 1}, [1, [2]], "text", 5, -0.5, 1e20, True, None, {"ü": "\u00df"})),
        ("read", {"vt": 30, "qty": 20}),
        ("send_batch", [None, 1, "x", [1], {}]),
        ("pop", {"qty": 3}),
        ("pop", {"qty": 30}),
        ("pop", {}),
    ],
    "headers": [
        ("send", 1, {"headers": {"a": {"b": 1}}}),
        ("send", 2, {"headers": {}}),
        ("send", 3, {"headers": None}),
        ("send_batch", [4, 5, 6], {"headers": [{"a": 1}, {}, None]}),
        ("read", {"qty": 10}),
        ("send_batch", [1], {"headers": [{}, {}]}),
    ],
    "delays": [
        ("send", "span", {"delay": 100}),
        ("send", "moment", {"delay": soon(100)}),
        ("send", "past", {"delay": soon(-100)}),
        ("send", "negative", {"delay": -100}),
        ("send", "older name", {"tz": 100}),
        ("send", "both", {"delay": 100, "tz": 0}),
        ("send_batch", ["batch"], {"delay": 100}),
        ("send_batch", ["batch moment"], {"delay": soon(-1)}),
        ("read", {"qty": 10}),
        ("metrics",),
    ],
    "batches": [
        ("send_batch", []),
        ("send_batch", list(range(1_001))),
        ("read", {"qty": 0}),
        ("read", {"qty": 1_500}),
        ("set_vt", list(range(1, 1_002)), 0),
        ("pop", {"qty": 1_001}),
        ("send_batch", list(range(2_100))),
        ("delete_batch", list(range(1_000, 2_500))),
        ("archive_batch", list(range(2_400, 4_000))),
        ("delete_batch", []),
        ("archive_batch", [7, 7]),
        ("purge",),
        ("metrics",),
    ],
    "reads": [
        ("send_batch", [{"k": "a"}, {"k": "b", "n": 1}, {"k": "b"}, {"k": "c"}]),
        ("read", {"conditional": {"k": "b"}}),
        ("read", {"conditional": {"k": "b"}, "qty": 2}),
        ("read", {"conditional": {}}),
        ("read_batch", {"vt": 10, "batch_size": 1}),
        ("read_batch", {"batch_size": 5}),
        ("read_with_poll", {"max_poll_seconds": 0}),
        ("read",),
        ("read", {"vt": 0}),
        ("set_vt", 1, 0),
        ("set_vt", 99, 0),
        ("set_vt", [1, 2, 99], soon(-5)),
        ("set_vt", [1], -5),
        ("read_with_poll", {"qty": 3, "max_poll_seconds": 1, "poll_interval_ms": 10}),
        ("metrics",),
    ],
    "settles": [
        ("send_batch", [1, 2, 3]),
        ("delete", 1),
        ("delete", 1),
        ("archive", 2),
        ("archive", 2),
        ("delete_batch", [3, 3, 99]),
        ("purge",),
    ],
    "groups": [
        ("create_fifo_index",),
        ("send_batch", [1, 2, 3, 4, 5], {"headers": [{"x-pgmq-group": group} for group in "aabbb"]}),
        ("read_grouped_rr", {"qty": 3}),
        ("set_vt", [1, 2, 3, 4, 5], 0),
        ("read_grouped", {"qty": 3}),
        ("read_grouped_with_poll", {"qty": 5, "max_poll_seconds": 0}),
        ("read_grouped_rr_with_poll", {"max_poll_seconds": 0}),
    ],
    "topics": [
        ("list_topic_bindings",),
        ("bind_topic pattern", f"{NAME}.*"),
        ("bind_topic pattern", f"{NAME}.#"),
        ("list_topic_bindings",),
        ("test_routing key", f"{NAME}.x"),
        ("send_topic key", f"{NAME}.x", 1),
        ("send_topic key", f"{NAME}.x.y", 2, {"delay": 0}),
        ("send_topic key", f"{NAME}.x", 3, {"headers": {"h": 1}, "delay": 0}),
        ("send_topic key", "nobody", 3),
        ("send_batch_topic key", f"{NAME}.x", [4, 5]),
        ("send_batch_topic key", f"{NAME}.x", [6], {"headers": [{"h": 6}]}),
        ("send_batch_topic key", f"{NAME}.x", []),
        ("read", {"qty": 10}),
        ("unbind_topic pattern", f"{NAME}.*"),
        ("unbind_topic pattern", f"{NAME}.*"),
        ("validate_routing_key key", "a.b"),
        ("validate_routing_key key", "a..b"),
        ("validate_topic_pattern key", "a.*"),
        ("validate_topic_pattern key", "a.**"),
    ],
    "queues": [
        ("create_queue",),
        ("create_queue", {"unlogged": True}),
        ("list_queues key",),
        ("validate_queue_name",),
        ("enable_notify",),
        ("update_notify", 400),
        ("list_notify_throttles key",),
        ("disable_notify",),
        ("list_notify_throttles key",),
        ("detach_archive",),
        ("drop_queue",),
        ("drop_queue",),
        ("read",),
        ("metrics",),
    ],
}  # fmt: skip

IN_NO_ORDER = {"delete_batch", "archive_batch", "set_vt", "read", "pop", "read_batch", "read_with_poll"}


def comparable(answer):
    """An answer without moments, which are others each time."""
    if isinstance(answer, list):
        return [comparable(each) for each in answer]
    if not dataclasses.is_dataclass(answer):
        return answer
    values = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    kinds = {name: "moment" for name, value in values.items() if isinstance(value, datetime)}
    ages = {name: value is None for name, value in values.items() if name.endswith("_age_sec")}
    return type(answer).__name__, values | kinds | ages


async def run(queue, program):
    """Makes the calls, and gives what came of each."""
    answers = []
    await settled(queue.create_queue(NAME))
    for word, *given in program:
        method, _, form = word.partition(" ")
        named = given.pop() if given and isinstance(given[-1], dict) and (len(given) > 1 or method != "send") else {}
        arguments = {"pattern": [*given, NAME], "key": given}.get(form, [NAME, *given])
        if method == "list_topic_bindings":
            arguments = [NAME]
        try:
            answer = comparable(await settled(getattr(queue, method)(*arguments, **named)))
        except ValueError as error:
            answer = f"ValueError: {error}"
        except Exception:  # noqa: BLE001 -- of psycopg, of asyncpg or of ours
            answer = "an error"
        if method in IN_NO_ORDER and isinstance(answer, list):
            answer.sort(key=repr)
        answers.append((word, answer))
    await settled(queue.drop_queue(NAME))
    return answers


async def settled(answer):
    return await answer if inspect.isawaitable(answer) else answer


@pytest.mark.filterwarnings("ignore:list_queues")
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_plain_class_answers_as_pgmq_does(addresses, program):
    target, postgres = addresses
    theirs, ours = pgmq.PGMQueue(**postgres), pgmqueue.PGMQueue(target)
    try:
        expected = asyncio.run(run(theirs, PROGRAMS[program]))
        assert asyncio.run(run(ours, PROGRAMS[program])) == expected
    finally:
        theirs.close()
        ours.close()


@pytest.mark.filterwarnings("ignore:list_queues")
@pytest.mark.parametrize("program", PROGRAMS)
async def test_the_asynchronous_class_answers_as_pgmq_does(addresses, program):
    target, postgres = addresses
    theirs, ours = pgmq.AsyncPGMQueue(**postgres), pgmqueue.AsyncPGMQueue(target)
    await theirs.init()
    try:
        expected = await run(theirs, PROGRAMS[program])
        assert await run(ours, PROGRAMS[program]) == expected
    finally:
        await theirs.close()
        await ours.close()


def test_each_reads_what_the_other_sent(addresses):
    target, postgres = addresses
    theirs, ours = pgmq.PGMQueue(**postgres), pgmqueue.PGMQueue(target)
    try:
        theirs.create_queue(NAME)
        theirs.send(NAME, {"from": "theirs"}, headers={"h": 1})
        ours.send(NAME, {"from": "ours"}, headers={"h": 2})
        mine, other = ours.read(NAME), theirs.read(NAME)
        assert (mine.message, mine.headers) == ({"from": "theirs"}, {"h": 1})
        assert (other.message, other.headers) == ({"from": "ours"}, {"h": 2})
        ours.drop_queue(NAME)
    finally:
        theirs.close()
        ours.close()
