"""The Python interface of pgqrs, over gRPC.

    from pgmq_grpc.compat.pgqrs import Admin, Consumer, Producer

    admin = Admin("127.0.0.1:50051")
    queue = await admin.create_queue("tasks")
    producer = Producer("127.0.0.1:50051", "tasks", "localhost", 3000)
    consumer = Consumer("127.0.0.1:50051", "tasks", "localhost", 3001)

The address of the pgmq-grpc server stands in place of Postgres's. Objects may be made before there is an event loop,
such as at the top of a module, and nothing is connected before the first call. Errors are `RuntimeError`. Ids of
messages are unique within their queue. New programs are better off with `pgmq_grpc` itself.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

from pgmq_grpc._async.client import AsyncClient
from pgmq_grpc._errors import PgmqError
from pgmq_grpc.pgmqueue._config import refuse_postgres

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from pgmq_grpc._async.message import AsyncMessage
    from pgmq_grpc._types import ClientInfo, Outcome

__all__ = [
    "Admin",
    "Archive",
    "Config",
    "Consumer",
    "Messages",
    "PgqrsError",
    "Producer",
    "QueueAlreadyExistsError",
    "QueueInfo",
    "QueueMessage",
    "QueueNotFoundError",
    "Queues",
    "WorkerInfo",
    "WorkerStatus",
    "Workers",
]

# The most messages of which a consumer remembers that it holds them.
_MOST_HELD = 10_000


class PgqrsError(RuntimeError):
    """What failed. Its cause is a `pgmq_grpc.PgmqError` with code and reason."""


class QueueAlreadyExistsError(PgqrsError):
    """The queue that was to be created already exists."""


class QueueNotFoundError(PgqrsError):
    """The queue does not exist."""


@contextmanager
def _errors(queue: str = "") -> Iterator[None]:
    try:
        yield
    except PgmqError as error:
        if error.reason == "QUEUE_ALREADY_EXISTS":
            raise QueueAlreadyExistsError(f"queue {queue!r} already exists") from error
        if error.reason == "QUEUE_NOT_FOUND":
            raise QueueNotFoundError(f"queue {queue or error.metadata.get('queue')!r} not found") from error
        raise PgqrsError(str(error)) from error


@dataclass
class Config:
    """Where the server is, and what a consumer does where it is not told: how long it holds messages, and how many."""

    dsn: str
    default_lock_time_seconds: int = 5
    default_max_batch_size: int = 100

    @staticmethod
    def from_dsn(dsn: str) -> Config:
        """Take an address, and the defaults."""
        return Config(dsn)


@dataclass(frozen=True)
class QueueInfo:
    """A queue."""

    id: int
    queue_name: str
    created_at: str


@dataclass(frozen=True)
class QueueMessage:
    """A message. Moments are texts as of RFC 3339, in UTC."""

    id: int
    queue_id: int
    payload: Any
    vt: str = ""
    enqueued_at: str = ""
    read_ct: int = 0
    dequeued_at: str | None = None


class WorkerStatus(Enum):
    """What a worker does. Those that are listed are there."""

    Ready = "ready"


@dataclass(frozen=True)
class WorkerInfo:
    """A producer or a consumer that was seen within the last minute."""

    id: int
    hostname: str
    port: int
    queue_name: str
    status: WorkerStatus
    started_at: str
    heartbeat_at: str


class _Connected:
    """Something with a connection of its own, under a name of its own."""

    def __init__(self, dsn: str | Config | Admin, name: str = "") -> None:
        given: str | Config = dsn.config if isinstance(dsn, Admin) else dsn
        self.config: Config = Config(given) if isinstance(given, str) else given
        refuse_postgres(self.config.dsn)
        # The server takes names of printable ASCII.
        name = name.encode("ascii", "replace").decode()[-128:]
        self._client = AsyncClient(self.config.dsn, name=name, json=json)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()


class Producer(_Connected):
    """Sends messages to a queue. `hostname` and `port` say who it is."""

    def __init__(self, dsn: str | Config | Admin, queue: str, hostname: str, port: int) -> None:
        super().__init__(dsn, f"{hostname}:{port}")
        self._queue = self._client.queue(queue)

    async def enqueue(self, payload: object) -> int:
        """Send a message, and give its id."""
        with _errors(self._queue.name):
            return (await self._queue.send(payload)).msg_id

    async def enqueue_delayed(self, payload: object, delay_seconds: float) -> int:
        """Send a message that becomes visible after some seconds, and give its id."""
        with _errors(self._queue.name):
            return (await self._queue.send(payload, delay=delay_seconds)).msg_id

    async def enqueue_batch(self, payloads: Sequence[object]) -> list[QueueMessage]:
        """Send messages, at most 1,000, all or none."""
        with _errors(self._queue.name):
            queue, results = await asyncio.gather(self._queue.get(), self._queue.send_batch(payloads))
        return [QueueMessage(sent.msg_id, queue.id, payload) for sent, payload in zip(results, payloads, strict=True)]


class Consumer(_Connected):
    """Takes messages of a queue, and settles those that it holds. `hostname` and `port` say who it is.

    A message belongs to the consumer that dequeued it last: to settle another one's does nothing, and gives False.
    """

    def __init__(self, dsn: str | Config | Admin, queue: str, hostname: str, port: int) -> None:
        super().__init__(dsn, f"{hostname}:{port}")
        self._queue = self._client.queue(queue)
        self._held: dict[int, tuple[AsyncMessage, datetime]] = {}
        self._queue_id: int | None = None

    async def dequeue(self, batch_size: int | None = None) -> list[QueueMessage]:
        """Take the messages that are there, up to `batch_size`, for some seconds; see `Config` for the defaults."""
        limit = self.config.default_max_batch_size if batch_size is None else batch_size
        return await self.dequeue_batch_with_delay(limit, self.config.default_lock_time_seconds)

    async def dequeue_batch(self, limit: int) -> list[QueueMessage]:
        """Take up to so many messages."""
        return await self.dequeue(limit)

    async def dequeue_batch_with_delay(self, limit: int, vt_seconds: float) -> list[QueueMessage]:
        """Take up to so many messages, and hold them for so many seconds."""
        with _errors(self._queue.name):
            if self._queue_id is None:
                self._queue_id = (await self._queue.get()).id
            messages = await self._queue.read(limit, visibility_timeout=vt_seconds, wait=0)
        for message in messages:
            self._hold(message, message.vt)
        while len(self._held) > _MOST_HELD:
            self._held.pop(next(iter(self._held)))
        return [
            QueueMessage(
                id=message.msg_id,
                queue_id=self._queue_id,
                payload=message.message,
                vt=message.vt.isoformat(),
                enqueued_at=message.enqueued_at.isoformat(),
                read_ct=message.read_ct,
                dequeued_at=message.last_read_at.isoformat() if message.last_read_at else None,
            )
            for message in messages
        ]

    async def archive(self, message_id: int) -> bool:
        """Move a message to the archive. False means that this consumer does not hold it."""
        return (await self.archive_batch([message_id]))[0]

    async def archive_batch(self, message_ids: Sequence[int]) -> list[bool]:
        """Move messages to the archive, and tell of each whether this consumer held it."""
        return await self._settle(self._queue.archive, message_ids)

    async def delete(self, message_id: int) -> bool:
        """Delete a message. False means that this consumer does not hold it."""
        return (await self.delete_many([message_id]))[0]

    async def delete_many(self, message_ids: Sequence[int]) -> list[bool]:
        """Delete messages, and tell of each whether this consumer held it."""
        return await self._settle(self._queue.delete, message_ids)

    async def release_messages(self, message_ids: Sequence[int]) -> int:
        """Give messages back at once, and tell how many this consumer held."""
        return sum(await self._settle(lambda held: self._queue.release(held, 0), message_ids))

    async def extend_visibility(self, message_id: int, extension_seconds: float) -> bool:
        """Hold a message for so many seconds longer. False means that this consumer does not hold it."""
        if message_id not in self._held:
            return False
        message, until = self._held[message_id]
        longer = until + timedelta(seconds=extension_seconds)
        with _errors(self._queue.name):
            outcomes = await self._queue.set_visibility_timeout(message.receipt, visible_at=longer)
        if outcomes != ["DONE"]:
            return False
        self._hold(message, longer)
        return True

    # Their names in newer versions.
    dequeue_many_with_delay = dequeue_batch_with_delay
    extend_vt = extend_visibility
    archive_many = archive_batch

    def _hold(self, message: AsyncMessage, until: datetime) -> None:
        self._held.pop(message.msg_id, None)
        self._held[message.msg_id] = message, until

    async def _settle(self, settle: Any, message_ids: Iterable[int]) -> list[bool]:
        asked = list(message_ids)
        held = [self._held[message_id][0] for message_id in dict.fromkeys(asked) if message_id in self._held]
        if not held:
            return [False for _ in asked]
        with _errors(self._queue.name):
            outcomes: list[Outcome] = await settle(held)
        for message in held:
            self._held.pop(message.msg_id, None)
        done = {message.msg_id for message, outcome in zip(held, outcomes, strict=True) if outcome == "DONE"}
        return [message_id in done for message_id in asked]


class Admin(_Connected):
    """Makes and drops queues, and gives what there is to look at."""

    def __init__(self, dsn: str | Config | Admin) -> None:
        super().__init__(dsn)

    async def install(self) -> None:
        """Install pgmq where it is missing. A server does so by itself when it starts, unless it was told not to."""
        with _errors():
            if not (await self._client.get_server_info()).pgmq_version:
                await self._client.install_pgmq()

    async def verify(self) -> None:
        """Raise an error where pgmq is missing."""
        with _errors():
            if not (await self._client.get_server_info()).pgmq_version:
                raise PgqrsError("pgmq is not installed")

    async def create_queue(self, name: str) -> QueueInfo:
        """Create a queue. One that exists already is a `QueueAlreadyExistsError`."""
        with _errors(name):
            created = (await self._client.create_queue(name, fail_if_exists=True)).queue
        return QueueInfo(created.id, created.name, created.created_at.isoformat())

    async def get_queue(self, name: str) -> QueueInfo:
        """Describe a queue."""
        with _errors(name):
            found = await self._client.get_queue(name)
        return QueueInfo(found.id, found.name, found.created_at.isoformat())

    async def delete_queue(self, name: str) -> bool:
        """Drop a queue with all that is in it. False means that there was none."""
        try:
            with _errors(name):
                await self._client.drop_queue(name)
        except QueueNotFoundError:
            return False
        return True

    async def get_queues(self) -> Queues:
        """Give the queues."""
        return Queues(self._client)

    async def get_messages(self) -> Messages:
        """Give the messages of all queues."""
        return Messages(self._client)

    async def get_archive(self) -> Archive:
        """Give the archives of all queues."""
        return Archive(self._client)

    async def get_workers(self) -> Workers:
        """Give the producers and consumers."""
        return Workers(self._client)


class _Table:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client


class Queues(_Table):
    """The queues."""

    async def count(self) -> int:
        """Count the queues."""
        return len(await self.list())

    async def purge(self, queue_name: str) -> int:
        """Remove all messages of a queue, and tell how many there were."""
        with _errors(queue_name):
            return await self._client.purge_queue(queue_name)

    async def list(self) -> list[QueueInfo]:
        """List the queues by name."""
        with _errors():
            return [
                QueueInfo(queue.id, queue.name, queue.created_at.isoformat())
                async for queue in self._client.list_queues(page_size=1_000)
            ]


class Messages(_Table):
    """The messages that are in queues."""

    async def count(self) -> int:
        """Count them, visible or not."""
        with _errors():
            return sum([metrics.queue_length async for metrics in self._client.list_queue_metrics(page_size=1_000)])


class Archive(_Table):
    """The messages that are in archives."""

    async def count(self) -> int:
        """Count them. This looks at every row of every archive."""
        with _errors():
            counted = self._client.list_queue_metrics(include_archive=True, page_size=1_000)
            return sum([metrics.archive_length or 0 async for metrics in counted])


class Workers(_Table):
    """Producers and consumers, by any server's knowledge: those that called within the last minute."""

    async def count(self) -> int:
        """Count them."""
        return len(await self.list())

    async def list(self) -> list[WorkerInfo]:
        """List them: one for each name, queue and role."""
        with _errors():
            found = [client async for client in self._client.list_clients(page_size=1_000)]
        # One that has several connections is listed for each.
        return list({(client.name, client.role, client.queue): _worker(client) for client in found}.values())

    async def get(self, worker_id: int) -> WorkerInfo:
        """Give one of them."""
        for worker in await self.list():
            if worker.id == worker_id:
                return worker
        raise PgqrsError(f"worker {worker_id} not found")


def _worker(client: ClientInfo) -> WorkerInfo:
    hostname, _, port = client.name.rpartition(":")
    named = port.isdecimal()
    return WorkerInfo(
        id=zlib.crc32(f"{client.name}\0{client.role}\0{client.queue}".encode()),
        hostname=hostname if named else client.name,
        port=int(port) if named else 0,
        queue_name=client.queue,
        status=WorkerStatus.Ready,
        started_at=client.since.isoformat(),
        heartbeat_at=client.last_seen.isoformat(),
    )
