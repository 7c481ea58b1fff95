"""The words of streams and of the surroundings."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from values import error, given, outgoing, plain

from pgmq_grpc import AsyncClient, AsyncConsumer, AsyncMessage, AsyncProducer, AsyncWatcher, PgmqError
from pgmq_grpc.v1.queue_service_pb2 import DeleteRequest, ReadBatchRequest
from pgmq_grpc.v1.transaction_service_pb2 import Begin, OpenTransactionRequest

_SERVER_RETURNS_WITHIN = 60.0


class Streams:
    """What a case has opened, with the words that use it."""

    def __init__(self) -> None:
        self._opened = AsyncExitStack()
        self._ended_server: str | None = None

    def has(self, word: str) -> bool:
        """Whether the word is one of these."""
        return word in _WORDS

    async def do(self, client: AsyncClient, word: str, arguments: dict[str, Any]) -> Any:
        """Do what a word says, and give what came back as cases see it."""
        return await _WORDS[word](self, client, **arguments)

    async def close(self) -> None:
        """Close what the case has opened."""
        await self._opened.aclose()

    async def connect(self, client: AsyncClient, **arguments: Any) -> AsyncClient:
        """Give another client of the same server."""
        return await self._opened.enter_async_context(AsyncClient(**arguments))

    async def consume(self, client: AsyncClient, queue: str, **arguments: Any) -> AsyncConsumer:
        """Give a consumer."""
        return await self._opened.enter_async_context(client.queue(queue).consume(**given(arguments)))

    async def take(self, client: AsyncClient, consumer: AsyncConsumer, count: int, within: float = 10) -> Any:
        """Give the messages that come."""
        return plain(await _received(consumer, count, within), client.json)

    async def stop(self, client: AsyncClient, consumer: AsyncConsumer) -> None:
        """Stop a consumer, and wait until it has ended."""
        consumer.stop()
        await consumer.close()

    async def handle(
        self,
        client: AsyncClient,
        queue: str,
        count: int | None = None,
        deliveries: int | None = None,
        fail_first: int = 0,
        retry_delay: float | None = None,
        concurrency: int = 1,
        action: str = "delete",
        **arguments: Any,
    ) -> Any:
        """Let a handler do its work, and tell what it got."""
        consumer = client.queue(queue).consume(**arguments)
        handed: list[Any] = []
        tries: dict[str, int] = {}
        succeeded = 0

        async def handler(message: AsyncMessage) -> None:
            nonlocal succeeded
            if len(handed) == deliveries or succeeded == count:
                raise RuntimeError("the case has ended")
            handed.append(message.message)
            tries[message.message_text] = tries.get(message.message_text, 0) + 1
            failed = tries[message.message_text] <= fail_first
            succeeded += not failed
            if len(handed) == deliveries or succeeded == count:
                consumer.stop()
            if failed:
                raise RuntimeError("the case wants this to fail")

        settling: Any = action.upper()
        await consumer.run(handler, concurrency=concurrency, action=settling, retry_delay=retry_delay)
        return {"deliveries": handed}

    async def watch(self, client: AsyncClient, queues: list[str]) -> AsyncWatcher:
        """Give a watcher that the server has confirmed."""
        return await self._opened.enter_async_context(client.watch(queues))

    async def events(self, client: AsyncClient, watcher: AsyncWatcher, count: int, within: float = 10) -> Any:
        """Give the events that come."""
        return plain(await _received(watcher, count, within))

    async def producer(self, client: AsyncClient, queue: str, **arguments: Any) -> AsyncProducer:
        """Give a producer."""
        return await self._opened.enter_async_context(client.queue(queue).producer(**arguments))

    async def produce(
        self,
        client: AsyncClient,
        messages: list[dict[str, Any]],
        queue: str = "",
        producer: AsyncProducer | None = None,
        **arguments: Any,
    ) -> Any:
        """Send all messages at once, and give the result of each."""
        if producer is None:
            async with client.queue(queue).producer(**arguments) as own:
                return await self.produce(client, messages, producer=own)
        sends = [producer.send(outgoing(message)) for message in messages]
        results = await asyncio.gather(*sends, return_exceptions=True)
        return [_result(each) for each in results]

    async def close_producer(self, client: AsyncClient, producer: AsyncProducer) -> None:
        """Close a producer."""
        await producer.close()

    async def hold(self, client: AsyncClient, queue: str, msg_ids: list[int]) -> None:
        """Lock messages by a transaction that stays open until the end of the case."""
        transaction = client.raw.transaction.OpenTransaction()
        self._opened.callback(transaction.cancel)
        await transaction.write(OpenTransactionRequest(begin=Begin()))
        await transaction.write(OpenTransactionRequest(delete=DeleteRequest(queue=queue, msg_ids=msg_ids)))
        for _ in range(2):
            await transaction.read()
        # While it waits for a message, it is not idle.
        await transaction.write(OpenTransactionRequest(read_batch=ReadBatchRequest(queue=queue, wait={"seconds": 40})))

    async def restart_server(self, client: AsyncClient, *, kill: bool = False) -> None:
        """End the server."""
        self._ended_server = _server()
        os.kill(int(self._ended_server), signal.SIGKILL if kill else signal.SIGTERM)

    async def wait_for_server(self, client: AsyncClient) -> None:
        """Wait for the server after the one that was ended."""
        deadline = time.monotonic() + _SERVER_RETURNS_WITHIN
        while True:
            try:
                if _server() not in ("", self._ended_server):
                    await client.get_server_info()
                    return
            except PgmqError:
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise TimeoutError("the server has not come back")
            await asyncio.sleep(0.1)

    async def wait(self, client: AsyncClient, seconds: float) -> None:
        """Let time pass."""
        await asyncio.sleep(seconds)


_WORDS: dict[str, Callable[..., Awaitable[Any]]] = {
    "connect": Streams.connect,
    "consume": Streams.consume,
    "take": Streams.take,
    "stop": Streams.stop,
    "handle": Streams.handle,
    "watch": Streams.watch,
    "events": Streams.events,
    "producer": Streams.producer,
    "produce": Streams.produce,
    "close": Streams.close_producer,
    "hold": Streams.hold,
    "restart_server": Streams.restart_server,
    "wait_for_server": Streams.wait_for_server,
    "wait": Streams.wait,
}


async def _received(subscription: AsyncConsumer | AsyncWatcher, count: int, within: float) -> list[Any]:
    deadline = time.monotonic() + within
    received: list[Any] = []
    while len(received) < count:
        element = await subscription.receive(max(0.0, deadline - time.monotonic()))
        if element is None:
            break
        received.append(element)
    return received


def _result(result: Any) -> Any:
    if isinstance(result, PgmqError):
        return {"error": error(result)}
    if isinstance(result, BaseException):
        raise result
    return plain(result)


def _server() -> str:
    return Path(os.environ["PGMQ_GRPC_SERVER_PID_FILE"]).read_text("utf-8").strip()
