"""What other processes, other packages and the package itself are to find."""

import importlib.metadata
import importlib.resources
import subprocess
import sys

from harness import run_program

import pgmq_grpc
from pgmq_grpc import Client

# Ends with the exit statuses of processes that were forked while the client had streams.
FORKS = """
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pgmq_grpc import Client

def send(first):
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(queue.send, range(first, first + 5)))

client = Client()
queue = client.queue("NAME")
with queue.consume() as messages, queue.producer() as producer, queue.watch() as events:
    send(0)
    producer.send(5)
    children = []
    for number in range(2, 32):
        child = multiprocessing.get_context("fork").Process(target=send, args=(5 * number,), daemon=True)
        child.start()
        children.append(child)
        producer.submit(1000 + number)
    for child in children:
        child.join(60)
    print({child.exitcode for child in children})
    send(2000)
    found = set()
    while len(found) < 6 + 30 * 6 + 5:
        message = messages.receive(30)
        found.add(message.message)
        message.delete()
    print(len(found))
    # What happened before it watched again is not told.
    while events.receive(0.2) is None:
        producer.send("look")
client.close()
"""


def test_a_client_works_on_both_sides_of_a_fork(queue):
    assert run_program(FORKS.replace("NAME", queue.name)) == "{0}\n191\n"


def test_asyncio_may_begin_behind_a_fork_unless_grpc_was_used_before(queue):
    program = f"""
import asyncio, os
from pgmq_grpc import AsyncClient, Client

async def send():
    async with AsyncClient() as client:
        await client.queue({queue.name!r}).send(1)

def in_a_child():
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        asyncio.run(send())
    except RuntimeError as error:
        os._exit(7 if "fork" in str(error) else 8)
    os._exit(0)

print(in_a_child(), flush=True)
Client().queue({queue.name!r}).send(0)
print(in_a_child(), flush=True)
asyncio.run(send())
print(in_a_child(), flush=True)
"""
    assert run_program(program) == "0\n7\n7\n"


def test_a_program_that_closes_nothing_ends(queue):
    program = f"""
from pgmq_grpc import Client
queue = Client().queue({queue.name!r})
queue.producer().send(1)
consumer = queue.consume()
print(consumer.receive(30).message)
"""
    assert run_program(program) == "1\n"


def test_an_asyncio_program_that_closes_nothing_ends_without_noise(queue):
    program = f"""
import asyncio
from pgmq_grpc import AsyncClient

async def main():
    queue = AsyncClient().queue({queue.name!r})
    await queue.producer().send(1)
    consumer = queue.consume()
    print((await consumer.receive(30)).message)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_the_package_is_typed_and_says_its_version():
    assert importlib.resources.files(pgmq_grpc).joinpath("py.typed").is_file()
    assert pgmq_grpc.__version__ == importlib.metadata.version("pgmq-grpc")


def test_the_generated_code_leaves_the_module_pgmq_to_others():
    from pgmq_grpc.v1 import message_pb2

    assert message_pb2.Message.__module__ == "pgmq_grpc.v1.message_pb2"
    assert "pgmq.v1" not in sys.modules


def test_the_server_has_the_version_of_the_client():
    with Client() as client:
        assert client.get_server_info().server_version == pgmq_grpc.__version__
