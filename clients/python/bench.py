"""Figures: sends and settles per second, and the time of a lone send, beside pgmq-py on the same Postgres.

Starts the server at PGMQ_GRPC_SERVER with an embedded Postgres of its own, which pgmq-py reaches by plain SQL.
Everybody has 64 sends outstanding; pgmq-py has a connection for each. Every figure is the best of two rounds, taken in
turns.
"""

import asyncio
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgmq import PGMQueue
from pgmq.async_queue import PGMQueue as AsyncPGMQueue

from pgmq_grpc import AsyncClient, Client, PgmqError

CONCURRENCY = 64
ROUNDS = 2
MESSAGES = 6000
PEER_MESSAGES = 2000
LONE_SENDS = 200


def free_port() -> int:
    """Find a port that is free."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def server() -> Iterator[tuple[str, dict[str, Any]]]:
    """Run a server, and give its target and what pgmq-py needs to reach its Postgres."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        target, port, data = f"127.0.0.1:{free_port()}", str(free_port()), f"{place}/data"
        process = subprocess.Popen(
            [os.environ["PGMQ_GRPC_SERVER"], "--listen", target, "--data-dir", data, "--postgres-port", port],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with Client(target) as client:
                wait_for(client)
            password = Path(data, "password").read_text().strip()
            postgres = {"host": "127.0.0.1", "port": port, "database": "pgmq", "username": "pgmq", "password": password}
            yield target, {**postgres, "pool_size": CONCURRENCY, "init_extension": False}
        finally:
            process.terminate()
            process.wait()


def wait_for(client: Client) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            client.get_server_info()
        except PgmqError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("the server has not started")


class Figures:
    """The figures of one round, by their names."""

    def __init__(self, target: str, postgres: dict[str, Any]) -> None:
        self.target = target
        self.postgres = postgres

    def threads(self) -> dict[str, float]:
        """Measure Client."""
        with Client(self.target) as client:
            queue = client.queue("threads")
            queue.create()
            with ThreadPoolExecutor(CONCURRENCY) as pool:
                sends = rate(MESSAGES, lambda: list(pool.map(queue.send, bodies(MESSAGES))))
            queue.purge()
            with queue.producer(max_outstanding=CONCURRENCY) as producer:
                produced = rate(MESSAGES, lambda: [each.result() for each in [*map(producer.submit, bodies(MESSAGES))]])
            done = 0
            consumer = queue.consume(max_in_flight=1000)

            def handle(_: object) -> None:
                nonlocal done
                done += 1
                if done >= MESSAGES:
                    consumer.stop()

            settles = rate(MESSAGES, lambda: consumer.run(handle, concurrency=2))
            alone = [timed(lambda: queue.send({"n": 1})) for _ in range(LONE_SENDS)]
            queue.drop()
        return {"sends": sends, "produced": produced, "settles": settles, "lone": statistics.median(alone)}

    async def tasks(self) -> dict[str, float]:
        """Measure AsyncClient."""
        async with AsyncClient(self.target) as client:
            queue = client.queue("tasks")
            await queue.create()
            started = time.perf_counter()
            await at_once(queue.send, MESSAGES)
            sends = MESSAGES / (time.perf_counter() - started)
            await queue.purge()
            async with queue.producer() as producer:
                started = time.perf_counter()
                await at_once(producer.send, MESSAGES)
                produced = MESSAGES / (time.perf_counter() - started)
            done = 0
            consumer = queue.consume(max_in_flight=1000)

            async def handle(_: object) -> None:
                nonlocal done
                done += 1
                if done >= MESSAGES:
                    consumer.stop()

            started = time.perf_counter()
            await consumer.run(handle, concurrency=CONCURRENCY)
            settles = MESSAGES / (time.perf_counter() - started)
            alone = []
            for _ in range(LONE_SENDS):
                started = time.perf_counter()
                await queue.send({"n": 1})
                alone.append(time.perf_counter() - started)
            await queue.drop()
        return {"sends": sends, "produced": produced, "settles": settles, "lone": statistics.median(alone)}

    def peer_threads(self) -> dict[str, float]:
        """Measure the sync PGMQueue of pgmq-py."""
        queue = PGMQueue(**self.postgres)
        queue.create_queue("peer")

        def settle(_: object) -> None:
            message = queue.read("peer")
            if message is not None:
                queue.delete("peer", message.msg_id)

        with ThreadPoolExecutor(CONCURRENCY) as pool:
            sends = rate(PEER_MESSAGES, lambda: list(pool.map(lambda body: queue.send("peer", body), bodies())))
            settles = rate(PEER_MESSAGES, lambda: list(pool.map(settle, bodies())))
        alone = [timed(lambda: queue.send("peer", {"n": 1})) for _ in range(LONE_SENDS)]
        queue.drop_queue("peer")
        queue.pool.close()
        return {"sends": sends, "settles": settles, "lone": statistics.median(alone)}

    async def peer_tasks(self) -> dict[str, float]:
        """Measure the async PGMQueue of pgmq-py."""
        queue = AsyncPGMQueue(**self.postgres)
        await queue.init()
        await queue.create_queue("peer")

        async def settle(_: object) -> None:
            message = await queue.read("peer")
            if message is not None:
                await queue.delete("peer", message.msg_id)

        started = time.perf_counter()
        await at_once(lambda body: queue.send("peer", body), PEER_MESSAGES)
        sends = PEER_MESSAGES / (time.perf_counter() - started)
        started = time.perf_counter()
        await at_once(settle, PEER_MESSAGES)
        settles = PEER_MESSAGES / (time.perf_counter() - started)
        alone = []
        for _ in range(LONE_SENDS):
            started = time.perf_counter()
            await queue.send("peer", {"n": 1})
            alone.append(time.perf_counter() - started)
        await queue.drop_queue("peer")
        await queue.close()
        return {"sends": sends, "settles": settles, "lone": statistics.median(alone)}


def bodies(count: int = PEER_MESSAGES) -> list[dict[str, int]]:
    """Make the bodies that everybody sends."""
    return [{"n": number} for number in range(count)]


async def at_once(call: Callable[[Any], Any], count: int) -> None:
    """Make calls, so many at once as is allowed."""
    waiting = iter(bodies(count))

    async def caller() -> None:
        for body in waiting:
            await call(body)

    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))


def timed(call: Callable[[], object]) -> float:
    """Measure one call, in seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def rate(count: int, call: Callable[[], object]) -> float:
    """Give how many a second are done by a call that does them all."""
    return count / timed(call)


def best(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Give the best of each figure."""
    choose = {"sends": max, "produced": max, "settles": max, "lone": min}
    return {name: choose[name](each[name] for each in rounds) for name in rounds[0]}


def main() -> None:
    """Measure in turns, and print the table."""
    found: dict[str, list[dict[str, float]]] = {}
    with server() as (target, postgres):
        for _ in range(ROUNDS):
            figures = Figures(target, postgres)
            found.setdefault("Client", []).append(figures.threads())
            found.setdefault("pgmq-py, threads", []).append(figures.peer_threads())
            found.setdefault("AsyncClient", []).append(asyncio.run(figures.tasks()))
            found.setdefault("pgmq-py, asyncio", []).append(asyncio.run(figures.peer_tasks()))
    table = {name: best(rounds) for name, rounds in found.items()}
    print(f"{'':18}{'sends/s':>10}{'by producer':>13}{'settles/s':>11}{'lone send, ms':>15}")
    for name, each in table.items():
        produced = f"{each['produced']:.0f}" if "produced" in each else ""
        print(f"{name:18}{each['sends']:10.0f}{produced:>13}{each['settles']:11.0f}{each['lone'] * 1000:15.2f}")
    for ours, theirs in (("Client", "pgmq-py, threads"), ("AsyncClient", "pgmq-py, asyncio")):
        sends = table[ours]["sends"] / table[theirs]["sends"]
        produced = table[ours]["produced"] / table[theirs]["sends"]
        settles = table[ours]["settles"] / table[theirs]["settles"]
        print(
            f"{ours} does {sends:.1f} times the sends of {theirs}, by a producer {produced:.1f} times, "
            f"and {settles:.1f} times the settles"
        )


main()
