"""The interface of pgqrs: what its programs do, and the tables."""

import asyncio
import os
import subprocess
import sys

import pytest

from pgmq_grpc.compat.pgqrs import (
    Admin,
    Config,
    Consumer,
    PgqrsError,
    Producer,
    QueueInfo,
    QueueMessage,
    QueueNotFoundError,
    WorkerStatus,
)

TARGET = os.environ["PGMQ_GRPC_TARGET"]


@pytest.fixture
async def admin():
    admin = Admin(TARGET)
    yield admin
    await admin.close()


@pytest.fixture
async def worker(name):
    """Makes a producer or a consumer of the test's queue."""
    made = []

    def make(kind, hostname, port=3000, dsn=TARGET):
        made.append(kind(dsn, name, hostname, port))
        return made[-1]

    yield make
    for each in made:
        await each.close()


async def test_a_queue_is_created_once(admin, name):
    await admin.install()
    await admin.verify()
    queue = await admin.create_queue(f"{name}_1")
    assert isinstance(queue, QueueInfo)
    assert queue.queue_name == f"{name}_1"
    assert queue.id > 0
    with pytest.raises(RuntimeError, match="already exists"):
        await admin.create_queue(f"{name}_1")
    assert await admin.get_queue(f"{name}_1") == queue
    assert await admin.delete_queue(f"{name}_1") is True
    assert await admin.delete_queue(f"{name}_1") is False
    with pytest.raises(QueueNotFoundError, match="not found"):
        await admin.get_queue(f"{name}_1")


async def test_messages_are_enqueued_dequeued_and_archived(admin, worker, name):
    producer, consumer = worker(Producer, "p"), worker(Consumer, "c")
    ids = [await producer.enqueue({"task": number}) for number in range(5)]
    assert ids == sorted(ids)
    before = await (await admin.get_archive()).count()
    messages = await consumer.dequeue()
    assert all(isinstance(message, QueueMessage) for message in messages)
    assert [message.payload for message in messages] == [{"task": number} for number in range(5)]
    assert [message.id for message in messages] == ids
    assert {message.queue_id for message in messages} == {(await admin.get_queue(name)).id}
    for message in messages:
        assert await consumer.archive(message.id) is True
    assert await (await admin.get_archive()).count() == before + 5
    assert await consumer.dequeue() == []


async def test_a_consumer_settles_only_what_it_holds(worker):
    producer, consumer, other = worker(Producer, "p"), worker(Consumer, "c"), worker(Consumer, "d")
    sent = await producer.enqueue_batch([1, 2, 3, 4])
    assert [message.payload for message in sent] == [1, 2, 3, 4]
    first, second = (message.id for message in await consumer.dequeue_batch(2))
    assert await other.delete(first) is False
    assert await consumer.delete(999) is False
    assert await consumer.extend_visibility(first, 30) is True
    assert await other.extend_visibility(first, 30) is False
    assert await consumer.delete(first) is True
    assert await consumer.delete(first) is False
    assert await consumer.release_messages([second, first]) == 1
    held = await other.dequeue_batch_with_delay(10, 60)
    assert {message.id for message in held} == {message.id for message in sent} - {first}
    assert await consumer.archive(second) is False
    assert await other.archive_batch([second, first]) == [True, False]
    assert await other.delete_many([message.id for message in held]) == [False, True, True]


async def test_a_delayed_message_is_not_there_yet(worker):
    producer, consumer = worker(Producer, "p"), worker(Consumer, "c", dsn=Config.from_dsn(TARGET))
    await producer.enqueue_delayed({"later": True}, 60)
    assert await consumer.dequeue() == []


async def test_workers_are_those_who_called(admin, worker, name):
    producer = worker(Producer, f"{name}.producer", 5000, dsn=admin)
    consumer = worker(Consumer, f"{name}.consumer", 5001, dsn=admin)
    workers = await admin.get_workers()
    await producer.enqueue(1)
    await consumer.dequeue()
    assert await workers.count() >= 2
    mine = {each.hostname: each for each in await workers.list() if each.queue_name == name}
    assert mine[f"{name}.producer"].port == 5000
    assert mine[f"{name}.consumer"].status is WorkerStatus.Ready
    assert await workers.get(mine[f"{name}.consumer"].id) == mine[f"{name}.consumer"]
    with pytest.raises(PgqrsError, match="not found"):
        await workers.get(-1)


async def test_tables_count_what_is_there(admin, worker, name):
    producer = worker(Producer, "p")
    queues, messages = await admin.get_queues(), await admin.get_messages()
    assert name in {queue.queue_name for queue in await queues.list()}
    assert await queues.count() >= 1
    before = await messages.count()
    await producer.enqueue_batch([1, 2])
    assert await messages.count() == before + 2
    assert await queues.purge(name) == 2
    with pytest.raises(RuntimeError):
        await queues.purge(f"{name}_missing")


def test_objects_are_made_before_any_event_loop_and_used_in_several(name):
    producer = Producer(TARGET, name, "module", 8000)
    consumer = Consumer(TARGET, name, "module", 8001)
    assert asyncio.run(producer.enqueue(1)) == 1
    assert asyncio.run(producer.enqueue(2)) == 2
    assert [message.payload for message in asyncio.run(consumer.dequeue())] == [1, 2]
    assert asyncio.run(consumer.delete_many([1, 2])) == [True, True]


def test_a_program_that_closes_nothing_ends_in_silence(name):
    program = f"""
import asyncio
from pgmq_grpc.compat.pgqrs import Admin, Consumer, Producer
producer = Producer({TARGET!r}, {name!r}, "localhost", 3000)
async def main():
    print(await producer.enqueue(1))
    print(len(await Consumer({TARGET!r}, {name!r}, "localhost", 3001).dequeue()))
asyncio.run(main())
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)  # noqa: S603 -- the program above
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n1\n", "")
