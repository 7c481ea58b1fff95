"""What stands in place of asyncpg's pool and connections: transactions of the server, as ``pool`` and ``conn``."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import grpc.aio

from pgmq_grpc._errors import PgmqError
from pgmq_grpc.v1 import transaction_service_pb2 as transactions

from ._wire import Opening, async_call, method_of
from .connection import POOL_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from google.protobuf.message import Message as Request
    from typing_extensions import Self

    from pgmq_grpc import AsyncClient

__all__ = ["AsyncConnection", "AsyncPool", "AsyncTransaction"]


class AsyncPool:
    """Gives connections, at most so many at a time."""

    def __init__(self, client: AsyncClient, size: int) -> None:
        self.client = client
        self._free = asyncio.Semaphore(max(size, 1))

    def acquire(self, *, timeout: float | None = None) -> _Acquired:
        """Lend a connection: for a block by ``async with``, or until `release` by ``await``."""
        return _Acquired(self, timeout)

    async def release(self, connection: AsyncConnection) -> None:
        """Take a connection back. A transaction that is open on it is rolled back."""
        try:
            await connection.reset()
        finally:
            self._free.release()

    async def close(self) -> None:
        """Close the client."""
        await self.client.close()

    async def lend(self, timeout: float | None) -> AsyncConnection:
        """Wait for a free connection."""
        await asyncio.wait_for(self._free.acquire(), timeout)
        return AsyncConnection(self.client)


class _Acquired:
    def __init__(self, pool: AsyncPool, timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout

    def __await__(self) -> Generator[Any, Any, AsyncConnection]:
        return self._pool.lend(self._timeout).__await__()

    async def __aenter__(self) -> AsyncConnection:
        self._connection = await self
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        await self._pool.release(self._connection)


class AsyncConnection:
    """Calls of their own, or within `transaction`, as on a connection of asyncpg. It speaks no SQL."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._stream: _Stream | None = None
        self._failed = False
        self._lock = asyncio.Lock()

    def is_in_transaction(self) -> bool:
        """Tell whether a transaction is open."""
        return self._stream is not None or self._failed

    def transaction(self) -> AsyncTransaction:
        """Make a transaction: for a block by ``async with``, or by its methods.

        Within another one it is a part of that: there are no savepoints, and what fails within fails the whole.
        """
        return AsyncTransaction(self)

    async def call(self, request: Request) -> Any:
        """Make a call, within the transaction if one is open. One that fails ends the transaction."""
        method = method_of(request)
        if not method.command or not self.is_in_transaction():
            return await async_call(self._client, request)
        async with self._lock:
            if self._stream is None:
                raise RuntimeError("the transaction has failed: nothing more can be done in it but a rollback")
            try:
                return await self._stream.call(method.command, request)
            except BaseException:
                await self.fail()
                raise

    async def begin(self) -> None:
        """Open a transaction."""
        self._stream = await _begin(self._client)

    async def commit(self) -> None:
        """Make what was done hold. Raises when a call has failed, because nothing of it was applied."""
        stream, failed = self._stream, self._failed
        self._stream, self._failed = None, False
        if failed or stream is None:
            raise RuntimeError("the transaction was rolled back, because something in it had failed")
        await stream.commit()

    async def reset(self) -> None:
        """Undo what was done, and end the transaction."""
        stream, self._stream, self._failed = self._stream, None, False
        if stream is not None:
            await stream.rollback()

    async def fail(self) -> None:
        """Undo what was done, and leave the transaction so that only its end is possible."""
        await self.reset()
        self._failed = True

    async def execute(self, *_: object, **__: object) -> NoReturn:
        """Refuse SQL."""
        raise NotImplementedError(
            "a connection to pgmq-grpc takes no SQL: use the methods of AsyncPGMQueue, with conn="
        )

    fetch = fetchrow = fetchval = execute


class AsyncTransaction:
    """A transaction of a connection."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._outermost = False

    async def start(self) -> None:
        """Open it."""
        self._outermost = not self._connection.is_in_transaction()
        if self._outermost:
            await self._connection.begin()

    async def commit(self) -> None:
        """Make what was done hold; within another transaction, that one's end does it."""
        if self._outermost:
            await self._connection.commit()

    async def rollback(self) -> None:
        """Undo what was done, all of it within another transaction."""
        if self._outermost:
            await self._connection.reset()
        else:
            await self._connection.fail()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await (self.commit() if kind is None else self.rollback())


class _Stream:
    """A call of OpenTransaction."""

    def __init__(self, client: AsyncClient) -> None:
        self._call: Any = client.raw.transaction.OpenTransaction(metadata=client.metadata())
        self._broken = False

    async def call(self, command: str, request: Any) -> Any:
        try:
            reply = await self._exchange(transactions.OpenTransactionRequest(**{command: request}))
        except BaseException:
            self._broken = True
            raise
        return getattr(reply, reply.WhichOneof("reply") or command)

    async def _exchange(self, command: transactions.OpenTransactionRequest) -> Any:
        try:
            await self._call.write(command)
            reply = await self._call.read()
        except grpc.RpcError as error:
            raise PgmqError.from_rpc(error) from None
        except asyncio.InvalidStateError:
            # The server has ended the stream already; its status says why.
            reply = grpc.aio.EOF
        if reply is grpc.aio.EOF:
            raise await ended(self._call)
        return reply

    async def commit(self) -> None:
        try:
            await self.call("commit", transactions.Commit())
        finally:
            self.cancel()

    async def rollback(self) -> None:
        """Undo everything, and wait until the server has. The end of the stream does it in any case."""
        try:
            if not self._broken:
                with suppress(PgmqError):
                    await self.call("rollback", transactions.Rollback())
        finally:
            self.cancel()

    def cancel(self) -> None:
        self._call.cancel()


async def ended(call: Any) -> PgmqError:
    """Give the error with which a stream has ended."""
    return PgmqError.from_rpc(
        grpc.aio.AioRpcError(
            await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
        )
    )


async def _begin(client: AsyncClient) -> _Stream:
    """Open a transaction. Nothing was applied if that fails, so it is tried again for as long as a pool would wait."""
    opening = Opening(POOL_TIMEOUT)
    while True:
        stream = _Stream(client)
        try:
            await stream.call("begin", transactions.Begin())
        except PgmqError as error:
            stream.cancel()
            await asyncio.sleep(opening.pause_after(error))
        except BaseException:
            stream.cancel()
            raise
        else:
            return stream
