"""pgmq-py as a load generator: threads, or asyncio.

Usage: pgmq_py.py ORDER, where ORDER is JSON: kind (threads, async, mixed), url, queue, callers, body, warm_up_ms,
measure_ms. Prints BEGIN and END around the time in which it counts, and then the outcome as JSON.
"""

import asyncio
import json
import sys
import threading
import time

ORDER = json.loads(sys.argv[1])
QUEUE = ORDER["queue"]
BODY = json.loads(ORDER["body"])
WARM_UP = ORDER["warm_up_ms"] / 1000
MEASURE = ORDER["measure_ms"] / 1000


class Meter:
    """Counts what callers have done. Each caller has a list of its own."""

    def __init__(self, callers):
        self.measuring = False
        self.over = False
        self.failure = None
        self.latencies = [[] for _ in range(callers)]

    def done(self, caller, began):
        now = time.perf_counter()
        if self.measuring:
            self.latencies[caller].append(now - began)

    def begin(self):
        if self.failure:
            sys.exit(self.failure)
        print("BEGIN", flush=True)
        self.measuring = True
        return time.perf_counter()

    def end(self, began):
        self.measuring = False
        seconds = time.perf_counter() - began
        print("END", flush=True)
        self.over = True
        if self.failure:
            sys.exit(self.failure)
        found = sorted(latency * 1e6 for latencies in self.latencies for latency in latencies)
        if not found:
            sys.exit("nothing was done")
        at = lambda quantile: found[int((len(found) - 1) * quantile)]
        latency = {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": found[-1]}
        print(json.dumps({"messages": len(found), "seconds": seconds, "latency": latency}), flush=True)


def threads():
    """Callers that send, or half of them that send and half that read and delete."""
    from pgmq import PGMQueue
    from psycopg_pool import ConnectionPool

    callers = ORDER["callers"]
    consumers = callers // 2 if ORDER["kind"] == "mixed" else 0
    # Postgres takes 100 connections, and others need some.
    connections = min(callers, 80)
    pool = ConnectionPool(ORDER["url"], min_size=connections, max_size=connections, open=True, timeout=60)
    pool.wait(60)
    client = PGMQueue(pool=pool, init_extension=False)
    meter = Meter(callers)

    def send(caller):
        while not meter.over:
            began = time.perf_counter()
            client.send(QUEUE, BODY)
            # In the mixed load what counts is what arrives.
            if not consumers:
                meter.done(caller, began)

    def consume(caller):
        while not meter.over:
            began = time.perf_counter()
            message = client.read(QUEUE, vt=30, qty=1)
            if not message:
                continue
            message = message[0] if isinstance(message, list) else message
            client.delete(QUEUE, message.msg_id)
            meter.done(caller, began)

    def guarded(work, caller):
        try:
            work(caller)
        except Exception as error:
            meter.failure = meter.failure or repr(error)

    for caller in range(callers):
        work = consume if caller < consumers else send
        threading.Thread(target=guarded, args=(work, caller), daemon=True).start()
    time.sleep(WARM_UP)
    began = meter.begin()
    time.sleep(MEASURE)
    meter.end(began)
    sys.stdout.flush()
    # Threads may still wait for the database.
    import os

    os._exit(0)


async def tasks():
    """Callers that send, on one event loop."""
    import asyncpg
    from pgmq.async_queue import PGMQueue

    callers = ORDER["callers"]
    pool = await asyncpg.create_pool(ORDER["url"], min_size=callers, max_size=callers)
    client = PGMQueue(pool=pool, init_extension=False)
    await client.init()
    meter = Meter(callers)

    async def send(caller):
        try:
            while not meter.over:
                began = time.perf_counter()
                await client.send(QUEUE, BODY)
                meter.done(caller, began)
        except Exception as error:
            meter.failure = meter.failure or repr(error)

    running = [asyncio.create_task(send(caller)) for caller in range(callers)]
    await asyncio.sleep(WARM_UP)
    began = meter.begin()
    await asyncio.sleep(MEASURE)
    meter.end(began)
    await asyncio.gather(*running)
    await pool.close()


if ORDER["kind"] == "async":
    asyncio.run(tasks())
else:
    threads()
