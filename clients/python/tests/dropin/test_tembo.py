"""The interface of tembo-pgmq-python, and its producer and five consumers in processes of their own."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from pgmq_grpc import PgmqError
from pgmq_grpc.compat.tembo import Message, PGMQueue
from pgmq_grpc.compat.tembo.async_queue import PGMQueue as AsyncPGMQueue
from pgmq_grpc.compat.tembo.messages import QueueMetrics

# All 100,000 take minutes, because each one is sent, and popped, by a call and a commit of its own.
MESSAGES = int(os.environ.get("PGMQ_GRPC_TEMBO_MESSAGES", "1000"))

PRODUCER = f"""
from pgmq_grpc.compat.tembo import Message, PGMQueue

queue = PGMQueue()
for number in range({MESSAGES}):
    queue.send("NAME", {{"payload": f"payload {{number}}"}})
"""
CONSUMER = """
import time

from pgmq_grpc.compat.tembo import Message, PGMQueue

queue = PGMQueue()
empty = 0
while empty < 5:
    try:
        message: Message = queue.pop("NAME")
        print(message.message["payload"])
        empty = 0
    except IndexError:
        empty += 1
        time.sleep(0.5)
"""


def run_together(directory, producer, consumer):
    """Runs a producer and five consumers, and gives what they print."""
    outputs = []
    processes = []
    for index, program in enumerate([producer, *[consumer] * 5]):
        path = directory / f"program_{index}.py"
        path.write_text(program)
        outputs.append(directory / f"output_{index}.txt")
        with outputs[-1].open("w") as output:
            command = [sys.executable, str(path)]
            processes.append(subprocess.Popen(command, stdout=output))  # noqa: S603 -- the programs above
    try:
        assert [process.wait(1_800) for process in processes] == [0] * 6
    finally:
        for process in processes:
            process.kill()
    return outputs[0].read_text(), [output.read_text().splitlines() for output in outputs[1:]]


def test_five_consumers_see_each_message_once(tmp_path, name):
    _, printed = run_together(tmp_path, PRODUCER.replace("NAME", name), CONSUMER.replace("NAME", name))
    seen = Counter(line for lines in printed for line in lines)
    assert seen == Counter(f"payload {number}" for number in range(MESSAGES))
    assert PGMQueue().metrics(name).queue_length == 0


@pytest.fixture
def queue():
    queue = PGMQueue()
    yield queue
    queue.pool.close()


def test_an_empty_queue_cannot_be_popped(queue, name):
    with pytest.raises(IndexError):
        queue.pop(name)
    with pytest.raises(IndexError):
        queue.set_vt(name, 1, 10)


def test_the_methods_do_what_their_names_say(queue, name):
    queue.create_queue(f"{name}_u", unlogged=True)
    assert {name, f"{name}_u"} <= set(queue.list_queues())
    assert queue.drop_queue(f"{name}_u", partitioned=False) is True
    assert queue.validate_queue_name(name) is None
    with pytest.raises(PgmqError):
        queue.validate_queue_name("x" * 60)
    assert queue.send(name, {"n": 1}) == 1
    assert queue.send(name, {"n": 2}, delay=60) == 2
    assert queue.send_batch(name, [{"n": 3}, {"n": 4}]) == [3, 4]
    message = queue.read(name, vt=60)
    assert isinstance(message, Message)
    assert (message.msg_id, message.read_ct, message.message) == (1, 1, {"n": 1})
    assert [each.msg_id for each in queue.read_batch(name, batch_size=5)] == [3, 4]
    assert queue.read(name) is None
    assert queue.read_with_poll(name, max_poll_seconds=0) == []
    assert queue.set_vt(name, 2, 0).message == {"n": 2}
    assert queue.pop(name).msg_id == 2
    assert queue.delete(name, 1) is True
    assert queue.archive(name, 3) is True
    assert queue.delete_batch(name, [4, 5]) == [4]
    assert queue.archive_batch(name, [4, 5]) == []
    assert isinstance(queue.metrics(name), QueueMetrics)
    assert queue.metrics(name).total_messages == 4
    assert name in {each.queue_name for each in queue.metrics_all()}
    queue.send(name, {})
    assert queue.purge(name) == 1
    queue.detach_archive(name)


async def test_the_asynchronous_class_does_too(name):
    queue = AsyncPGMQueue()
    await queue.init()
    await queue.validate_queue_name(name)
    assert await queue.send_batch(name, [{"n": 1}, {"n": 2}]) == [1, 2]
    assert (await queue.read(name)).message == {"n": 1}
    assert (await queue.set_vt(name, 1, 60)).msg_id == 1
    assert (await queue.pop(name)).message == {"n": 2}
    with pytest.raises(IndexError):
        await queue.pop(name)
    assert name in await queue.list_queues()
    assert (await queue.metrics(name)).queue_length == 1
    assert name in {each.queue_name for each in await queue.metrics_all()}
    await queue.pool.close()
