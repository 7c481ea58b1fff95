"""The README's programs run as they stand, but for addresses and names of queues."""

import ast
import asyncio
import re
import threading
from pathlib import Path

import pytest
from harness import TARGET, eventually

from pgmq_grpc import Client

README = Path(__file__, "../../README.md").resolve().read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
WORKER, LOOP, ASYNC_LOOP, SENDING, TRANSACTION, CONNECTING, RAW = BLOCKS


PGMQ, TEMBO, PGQRS = (
    "\n".join(re.findall(r"^\+(.*)", block, re.MULTILINE))
    for block in re.findall(r"```diff\n(.*?)```", README, re.DOTALL)
)


def adapted(block, name):
    return block.replace("127.0.0.1:50051", TARGET).replace('"orders"', f'"{name}"')


def test_the_worker_works(queue, capsys):
    names = {}
    worker = threading.Thread(target=exec, args=(adapted(WORKER, queue.name), names))
    worker.start()
    # Ids are given out before messages are stored: a count of them does not tell that `send` has returned.
    said = []
    eventually(lambda: said.append(capsys.readouterr().out) or "".join(said) == "7\n")
    eventually(lambda: queue.metrics().queue_length == 0)
    names["client"].close()
    worker.join(30)
    assert not worker.is_alive()
    assert capsys.readouterr().out == ""


def test_the_loop_settles(client, queue):
    queue.send_batch([1, 2])
    names = {"orders": client.queue(queue.name)}
    body = (
        adapted(LOOP, queue.name).rstrip().split("#")[0]
        + "\n        messages.stop() if message.msg_id == 2 else None\n"
    )
    exec(body, names)
    assert queue.metrics().queue_length == 0


async def test_the_async_loop_settles(client, name):
    client.queue(name).send_batch([1])
    program = compile(adapted(ASYNC_LOOP, name), "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    task = asyncio.ensure_future(eval(program, {}))
    while client.queue(name).metrics().queue_length:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_every_way_of_sending_sends(client, queue):
    names = {"orders": queue}
    exec(SENDING, names)
    assert len(set(names["ids"])) == 10_000
    assert queue.metrics().queue_length == 10_005


def test_the_transaction_is_applied(client, queue):
    queue.send(7)
    exec(
        adapted(TRANSACTION, queue.name).replace('"invoices"', f'"{queue.name}"'),
        {"client": client, "message": queue.read()[0]},
    )
    assert queue.metrics().total_messages == 2
    assert queue.metrics().queue_length == 1


def test_clients_are_made_in_every_way():
    names = {"Client": Client, "token": lambda: "t"}
    exec(CONNECTING, names)


def test_the_raw_call_is_made(client, queue):
    exec(adapted(RAW, queue.name), {"client": client})


@pytest.mark.parametrize("block", [PGMQ, TEMBO])
def test_the_lines_of_a_drop_in_connect(block, name):
    names = {}
    exec(adapted(block, name), names)
    names["queue"].send(name, {"hello": "world"})
    assert names["queue"].pop(name).message == {"hello": "world"}


async def test_the_lines_of_pgqrs_connect(name):
    names = {}
    exec(adapted(PGQRS, name).replace('"tasks"', f'"{name}"'), names)
    assert (await names["admin"].get_queue(name)).queue_name == name
    assert await names["producer"].enqueue({"n": 1}) == 1
    for each in (names["admin"], names["producer"]):
        await each.close()


def test_the_client_of_a_drop_in_consumes(name):
    names = {}
    exec(adapted(PGMQ, name), names)
    with names["queue"] as queue:
        queue.send(name, 1)
        with queue.client.queue(name).consume() as messages:
            assert messages.receive(30).delete() == "DONE"
