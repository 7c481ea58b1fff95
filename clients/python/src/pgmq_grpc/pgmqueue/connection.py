"""What stands in place of psycopg's pool and connections: transactions of the server, as ``pool`` and ``conn``."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from pgmq_grpc._errors import PgmqError
from pgmq_grpc.v1 import transaction_service_pb2 as transactions

from ._wire import Opening, call, method_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message as Request

    from pgmq_grpc import Client

__all__ = ["Connection", "Pool"]

POOL_TIMEOUT = 30.0


class Pool:
    """Gives connections, at most so many at a time."""

    def __init__(self, client: Client, size: int) -> None:
        self.client = client
        self._free = threading.BoundedSemaphore(max(size, 1))

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[Connection]:
        """Lend a connection: what was done on it is committed at the end, or rolled back after an exception.

        After `timeout`, 30 seconds without one, the pool gives up with a `TimeoutError`.
        """
        connection = self.getconn(timeout)
        try:
            yield connection
        except BaseException:
            connection.rollback()
            raise
        else:
            connection.commit()
        finally:
            self.putconn(connection)

    def getconn(self, timeout: float | None = None) -> Connection:
        """Lend a connection until it is given back by `putconn`."""
        if not self._free.acquire(timeout=POOL_TIMEOUT if timeout is None else timeout):
            raise TimeoutError("no connection was free in time: all are in transactions")
        return Connection(self.client)

    def putconn(self, conn: Connection) -> None:
        """Take a connection back. A transaction that is open on it is rolled back."""
        conn.close()
        self._free.release()

    def close(self) -> None:
        """Close the client."""
        self.client.close()


class Connection:
    """A transaction at a time, which begins with its first call, as on a connection of psycopg.

    It is safe to be used by several threads. It speaks no SQL.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stream: _Stream | None = None
        self._blocks = 0
        self._failed = False
        self._lock = threading.RLock()

    def call(self, request: Request) -> Any:
        """Make a call within the transaction. One that fails ends the transaction."""
        method = method_of(request)
        if not method.command:
            return call(self._client, request)
        with self._lock:
            self._refuse_if_failed()
            if self._stream is None:
                self._stream = _begin(self._client)
            try:
                return self._stream.call(method.command, request)
            except BaseException:
                self._fail()
                raise

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Make what is done in the block hold together. Within another transaction it is a part of that one.

        There are no savepoints: what fails within fails the whole.
        """
        outermost = self._stream is None and self._blocks == 0 and not self._failed
        self._blocks += 1
        try:
            yield self
        except BaseException:
            if outermost:
                self.rollback()
            else:
                self._fail()
            raise
        else:
            if outermost:
                self.commit()
        finally:
            self._blocks -= 1

    def commit(self) -> None:
        """Make what was done hold. Raises when a call has failed, because nothing of it was applied."""
        with self._lock:
            if self._failed:
                self.rollback()
                raise RuntimeError("the transaction was rolled back, because something in it had failed")
            stream, self._stream = self._stream, None
            if stream is not None:
                stream.commit()

    def rollback(self) -> None:
        """Undo what was done."""
        with self._lock:
            self._failed = False
            stream, self._stream = self._stream, None
            if stream is not None:
                stream.rollback()

    def close(self) -> None:
        """Roll back what is open."""
        self.rollback()

    def execute(self, *_: object, **__: object) -> NoReturn:
        """Refuse SQL."""
        raise NotImplementedError("a connection to pgmq-grpc takes no SQL: use the methods of PGMQueue, with conn=")

    cursor = execute

    def _refuse_if_failed(self) -> None:
        if self._failed:
            raise RuntimeError("the transaction has failed: nothing more can be done in it but a rollback")

    def _fail(self) -> None:
        self.rollback()
        self._failed = True


class _Stream:
    """A call of OpenTransaction."""

    def __init__(self, client: Client) -> None:
        self._commands: queue.SimpleQueue[transactions.OpenTransactionRequest | None] = queue.SimpleQueue()
        open_transaction = client.raw.transaction.OpenTransaction
        self._replies = open_transaction(iter(self._commands.get, None), metadata=client.metadata())
        self._broken = False

    def call(self, command: str, request: Any) -> Any:
        self._commands.put(transactions.OpenTransactionRequest(**{command: request}))
        try:
            reply = next(self._replies)
        except BaseException as error:
            self._broken = True
            if isinstance(error, grpc.RpcError):
                raise PgmqError.from_rpc(error) from None
            raise
        return getattr(reply, reply.WhichOneof("reply") or command)

    def commit(self) -> None:
        try:
            self.call("commit", transactions.Commit())
        finally:
            self.cancel()

    def rollback(self) -> None:
        """Undo everything, and wait until the server has. The end of the stream does it in any case."""
        try:
            if not self._broken:
                with suppress(PgmqError):
                    self.call("rollback", transactions.Rollback())
        finally:
            self.cancel()

    def cancel(self) -> None:
        self._commands.put(None)
        self._replies.cancel()


def _begin(client: Client) -> _Stream:
    """Open a transaction. Nothing was applied if that fails, so it is tried again for as long as a pool would wait."""
    opening = Opening(POOL_TIMEOUT)
    while True:
        stream = _Stream(client)
        try:
            stream.call("begin", transactions.Begin())
        except PgmqError as error:
            stream.cancel()
            time.sleep(opening.pause_after(error))
        except BaseException:
            stream.cancel()
            raise
        else:
            return stream
