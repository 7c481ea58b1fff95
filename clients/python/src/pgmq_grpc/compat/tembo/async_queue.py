"""``PGMQueue`` of tembo-pgmq-python for asyncio, over gRPC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pgmq_grpc import pgmqueue

from .messages import Message, QueueMetrics, reduced, reduced_metrics, the_one

if TYPE_CHECKING:
    import logging
    from datetime import datetime

    from pgmq_grpc.pgmqueue.async_connection import AsyncConnection, AsyncPool

__all__ = ["PGMQueue"]


@dataclass
class PGMQueue:
    """An asynchronous client of a pgmq-grpc server, which may be made before there is an event loop.

    `target` is the server's address; without it, `host` and `port` are, then the environment's PGMQ_GRPC_TARGET, and
    then 127.0.0.1:50051. `database`, `username`, `password` and `perform_transaction` have no use here: the server
    knows its database.
    """

    target: str | None = None
    host: str | None = None
    port: str | int | None = None
    database: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    delay: int = 0
    vt: int = 30
    pool_size: int = 10
    perform_transaction: bool = False
    verbose: bool = False
    log_filename: str | None = None
    pool: AsyncPool = field(init=False)
    logger: logging.Logger = field(init=False)

    def __post_init__(self) -> None:
        """Make the client that does the work. Nothing is connected before the first call."""
        self._queue = pgmqueue.AsyncPGMQueue(
            self.target,
            self.host,
            self.port,
            self.database,
            self.username,
            self.password,
            vt=self.vt,
            pool_size=self.pool_size,
            verbose=self.verbose,
            log_filename=self.log_filename,
        )
        self.pool = self._queue.pool
        self.logger = self._queue.logger

    async def init(self) -> None:
        """Ask whether the server is there."""
        await self._queue.init()

    async def create_partitioned_queue(
        self,
        queue: str,
        partition_interval: int = 10000,
        retention_interval: int = 100000,
        conn: AsyncConnection | None = None,
    ) -> None:
        """Create a partitioned queue."""
        await self._queue.create_partitioned_queue(queue, partition_interval, retention_interval, conn=conn)

    async def create_queue(self, queue: str, unlogged: bool = False, conn: AsyncConnection | None = None) -> None:
        """Create a queue. One that is there stays as it is."""
        await self._queue.create_queue(queue, unlogged, conn=conn)

    async def validate_queue_name(self, queue_name: str) -> None:
        """Raise an error for a name that no new queue can have."""
        await self._queue.validate_queue_name(queue_name)

    async def drop_queue(self, queue: str, partitioned: bool = False, conn: AsyncConnection | None = None) -> bool:
        """Drop a queue, partitioned or not. False means that there was none."""
        return await self._queue.drop_queue(queue, conn=conn)

    async def list_queues(self, conn: AsyncConnection | None = None) -> list[str]:
        """List the names of all queues."""
        return [record.queue_name for record in await self._queue.list_queues(conn=conn)]

    async def send(
        self,
        queue: str,
        message: object,
        delay: int = 0,
        tz: datetime | None = None,
        conn: AsyncConnection | None = None,
    ) -> int:
        """Send a message, and give its id. It is visible after `delay` seconds, or else at the moment `tz`."""
        return await self._queue.send(queue, message, delay=delay or tz, conn=conn)

    async def send_batch(
        self,
        queue: str,
        messages: list[object],
        delay: int = 0,
        tz: datetime | None = None,
        conn: AsyncConnection | None = None,
    ) -> list[int]:
        """Send messages, all or none, and give their ids."""
        return await self._queue.send_batch(queue, messages, delay=delay or tz, conn=conn)

    async def read(self, queue: str, vt: int | None = None, conn: AsyncConnection | None = None) -> Message | None:
        """Read a message; None if there is none."""
        messages = await self.read_batch(queue, vt or self.vt, conn=conn)
        return messages[0] if messages else None

    async def read_batch(
        self, queue: str, vt: int | None = None, batch_size: int = 1, conn: AsyncConnection | None = None
    ) -> list[Message]:
        """Read up to so many messages."""
        messages = await self._queue.read_batch(queue, vt or self.vt, batch_size, conn=conn)
        return [reduced(message) for message in messages]

    async def read_with_poll(
        self,
        queue: str,
        vt: int | None = None,
        qty: int = 1,
        max_poll_seconds: int = 5,
        poll_interval_ms: int = 100,
        conn: AsyncConnection | None = None,
    ) -> list[Message]:
        """Read up to so many messages, and wait for the first one. `poll_interval_ms` has no use here."""
        messages = await self._queue.read_with_poll(
            queue, vt or self.vt, qty, max_poll_seconds, poll_interval_ms, conn=conn
        )
        return [reduced(message) for message in messages]

    async def pop(self, queue: str, conn: AsyncConnection | None = None) -> Message:
        """Take a message out of the queue. An empty queue is an `IndexError`."""
        return the_one(await self._queue.pop(queue, conn=conn))

    async def delete(self, queue: str, msg_id: int, conn: AsyncConnection | None = None) -> bool:
        """Delete a message. False means that there was none."""
        return await self._queue.delete(queue, msg_id, conn=conn)

    async def delete_batch(self, queue: str, msg_ids: list[int], conn: AsyncConnection | None = None) -> list[int]:
        """Delete messages, all or none, and give the ids of those that were there."""
        return await self._queue.delete_batch(queue, msg_ids, conn=conn)

    async def archive(self, queue: str, msg_id: int, conn: AsyncConnection | None = None) -> bool:
        """Move a message to the archive. False means that there was none."""
        return await self._queue.archive(queue, msg_id, conn=conn)

    async def archive_batch(self, queue: str, msg_ids: list[int], conn: AsyncConnection | None = None) -> list[int]:
        """Move messages to the archive, all or none, and give the ids of those that were there."""
        return await self._queue.archive_batch(queue, msg_ids, conn=conn)

    async def purge(self, queue: str, conn: AsyncConnection | None = None) -> int:
        """Remove all messages, and tell how many there were."""
        return await self._queue.purge(queue, conn=conn)

    async def metrics(self, queue: str, conn: AsyncConnection | None = None) -> QueueMetrics:
        """Count the messages of a queue."""
        return reduced_metrics(await self._queue.metrics(queue, conn=conn))

    async def metrics_all(self, conn: AsyncConnection | None = None) -> list[QueueMetrics]:
        """Count the messages of all queues."""
        return [reduced_metrics(metrics) for metrics in await self._queue.metrics_all(conn=conn)]

    async def set_vt(self, queue: str, msg_id: int, vt: int, conn: AsyncConnection | None = None) -> Message:
        """Set in how many seconds a message becomes visible. One that is not there is an `IndexError`."""
        return the_one(await self._queue.set_vt(queue, msg_id, vt, conn=conn))

    async def detach_archive(self, queue: str, conn: AsyncConnection | None = None) -> None:
        """Do nothing, as in pgmq itself, whose archives belong to no extension any more."""
        await self._queue.detach_archive(queue, conn=conn)
