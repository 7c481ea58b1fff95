"""``PGMQueue`` of pgmq-py, over gRPC."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pgmq_grpc._errors import PgmqError
from pgmq_grpc._sync.client import Client
from pgmq_grpc.v1 import admin_service_pb2 as admin
from pgmq_grpc.v1 import message_pb2 as wire
from pgmq_grpc.v1 import queue_service_pb2 as queues
from pgmq_grpc.v1 import topic_service_pb2 as topics

from . import _operations as operations
from ._fields import ClientFields
from ._wire import call
from .connection import Connection, Pool
from .logger import log_with_context

if TYPE_CHECKING:
    from datetime import datetime

    from typing_extensions import Self

    from .messages import (
        BatchTopicResult,
        Message,
        NotificationThrottle,
        QueueMetrics,
        QueueRecord,
        RoutingResult,
        TopicBinding,
    )

__all__ = ["PGMQueue"]

T = TypeVar("T")


@dataclass
class PGMQueue(ClientFields):
    """pgmq-py's client, which talks to a pgmq-grpc server.

    `target` is the server's address; without it, `host` and `port` are, then the environment's PGMQ_GRPC_TARGET, and
    then 127.0.0.1:50051. `vt` is the visibility timeout of reads that give none. `pool_size` is how many transactions
    this object has open at a time. `database`, `username`, `password` and `init_extension` have no use here: the server
    knows its database, and installs pgmq there. `pool` shares the connection of another object. `client`, by that name
    alone, is a `pgmq_grpc.Client` to be used, such as one with TLS or credentials.

    Every method takes ``conn``: a connection of `pool`, or what `transaction` injects. The methods do what pgmq-py's
    do; what they return is of the same types. They raise this package's own errors. An object may be used by several
    threads, and in a process that was forked.

    What pgmq allows and the server does not: visibility timeouts below a second or beyond 12 hours, delays beyond 365
    days, bodies larger than the server's limit (1 MiB unless it was set), and names of new queues other than
    `[a-z_][a-z0-9_-]{0,46}`.
    """

    pool: Pool = field(default=None)  # type: ignore[assignment] # Never None once it is made.
    client: Client = field(default=None, repr=False, kw_only=True)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Make the client, which connects at the first call."""
        super().__post_init__()
        self._own_client = self.pool is None and self.client is None
        if self.pool is None:
            self.pool = Pool(Client(self.target) if self.client is None else self.client, self.pool_size)
        self.client = self.pool.client

    def close(self) -> None:
        """Close the connection to the server, unless it was shared."""
        if self._own_client:
            self.pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, name: str, steps: operations.Steps[T], conn: Connection | None, **context: object) -> T:
        if conn is not None and not isinstance(conn, Connection):
            raise TypeError(f"conn is a connection of PGMQueue.pool, and not a {type(conn).__name__}")
        log_with_context(self.logger, logging.DEBUG, name, **context)
        perform = partial(call, self.pool.client) if conn is None else conn.call
        with ExitStack() as transaction:
            try:
                request = next(steps)
                while True:
                    if request is operations.TOGETHER:
                        if conn is None:
                            perform = transaction.enter_context(self.pool.connection()).call
                        request = next(steps)
                        continue
                    try:
                        reply = perform(request)
                    except PgmqError as error:
                        request = steps.throw(error)
                    else:
                        request = steps.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result

    # Queues

    def create_queue(self, queue: str, unlogged: bool = False, conn: Connection | None = None) -> None:
        """Create a queue. One that is there stays as it is."""
        kind = queues.QUEUE_KIND_UNLOGGED if unlogged else queues.QUEUE_KIND_STANDARD
        steps = operations.create_queue(queue, conn is not None, kind)
        self._run("create_queue", steps, conn, queue=queue, unlogged=unlogged)

    def create_partitioned_queue(
        self,
        queue: str,
        partition_interval: int | str = 10000,
        retention_interval: int | str = 100000,
        conn: Connection | None = None,
    ) -> None:
        """Create a partitioned queue, by numbers of messages or by spans of time such as "1 day"."""
        partitioning = operations.partitioned(partition_interval, retention_interval)
        steps = operations.create_queue(queue, conn is not None, queues.QUEUE_KIND_PARTITIONED, partitioning)
        self._run("create_partitioned_queue", steps, conn, queue=queue)

    def drop_queue(self, queue: str, conn: Connection | None = None) -> bool:
        """Drop a queue with all that is in it. False means that there was none."""
        return self._run("drop_queue", operations.drop_queue(queue, conn is not None), conn, queue=queue)

    def list_queues(self, conn: Connection | None = None) -> list[QueueRecord]:
        """List all queues."""
        return self._run("list_queues", operations.list_queues(), conn)

    def validate_queue_name(self, queue_name: str, conn: Connection | None = None) -> bool:
        """Tell that a name fits a new queue; raises an error when it does not."""
        steps = operations.call(queues.ValidateNameRequest(queue=queue_name))
        self._run("validate_queue_name", steps, conn, queue=queue_name)
        return True

    # Sending

    def send(
        self,
        queue: str,
        message: object,
        headers: dict[str, object] | None = None,
        delay: float | datetime | None = None,
        tz: float | datetime | None = None,
        conn: Connection | None = None,
    ) -> int:
        """Send a message, and give its id.

        `message` is anything that JSON can hold. `delay` is a number of seconds, or the moment when the message becomes
        visible; `tz` is an older name of it, and counts where both are given.
        """
        steps = operations.send(queue, message, headers, delay if tz is None else tz)
        return self._run("send", steps, conn, queue=queue)

    def send_batch(
        self,
        queue: str,
        messages: list[object],
        headers: list[dict[str, object]] | None = None,
        delay: float | datetime | None = None,
        conn: Connection | None = None,
    ) -> list[int]:
        """Send messages in order, as many as there are, all or none, and give their ids."""
        steps = operations.send_batch(queue, messages, headers, delay)
        return self._run("send_batch", steps, conn, queue=queue, count=len(messages))

    # Topics

    def send_topic(
        self,
        routing_key: str,
        message: object,
        headers: dict[str, object] | None = None,
        delay: int | None = None,
        conn: Connection | None = None,
    ) -> int:
        """Send a message to all queues with a matching pattern, and tell how many those are."""
        steps = operations.send_topic(routing_key, message, headers, delay)
        return self._run("send_topic", steps, conn, routing_key=routing_key)

    def send_batch_topic(
        self,
        routing_key: str,
        messages: list[object],
        headers: list[dict[str, object]] | None = None,
        delay: float | datetime | None = None,
        conn: Connection | None = None,
    ) -> list[BatchTopicResult]:
        """Send messages to all queues with a matching pattern, all or none, and give the id of each copy."""
        steps = operations.send_batch_topic(routing_key, messages, headers, delay)
        return self._run("send_batch_topic", steps, conn, routing_key=routing_key, count=len(messages))

    def bind_topic(self, pattern: str, queue_name: str, conn: Connection | None = None) -> None:
        """Let a queue have the messages of which the routing key matches a pattern."""
        steps = operations.call(topics.BindTopicRequest(pattern=pattern, queue=queue_name))
        self._run("bind_topic", steps, conn, pattern=pattern, queue=queue_name)

    def unbind_topic(self, pattern: str, queue_name: str, conn: Connection | None = None) -> bool:
        """Take that back. False means that there was no such binding."""
        steps = operations.unbind_topic(pattern, queue_name)
        return self._run("unbind_topic", steps, conn, pattern=pattern, queue=queue_name)

    def list_topic_bindings(self, queue_name: str | None = None, conn: Connection | None = None) -> list[TopicBinding]:
        """List all bindings, or those of a queue."""
        return self._run("list_topic_bindings", operations.list_topic_bindings(queue_name), conn)

    def test_routing(self, routing_key: str, conn: Connection | None = None) -> list[RoutingResult]:
        """Tell which bindings match a routing key, without sending anything."""
        return self._run("test_routing", operations.match_routing(routing_key), conn, routing_key=routing_key)

    # Reading

    def read(
        self,
        queue: str,
        vt: int | None = None,
        qty: int = 1,
        conditional: dict[str, object] | None = None,
        conn: Connection | None = None,
    ) -> Message | list[Message] | None:
        """Read messages: one, or None if there is none, where `qty` is 1, else a list of up to so many.

        They are invisible to others for `vt` seconds. `conditional` reads only bodies that contain it.
        """
        steps = operations.read(queue, vt or self.vt, qty, conn is not None, conditional=conditional)
        messages = self._run("read", steps, conn, queue=queue, vt=vt or self.vt, qty=qty)
        return next(iter(messages), None) if qty == 1 else messages

    def read_batch(
        self, queue: str, vt: int | None = None, batch_size: int = 1, conn: Connection | None = None
    ) -> list[Message]:
        """Read up to so many messages; always a list."""
        steps = operations.read(queue, vt or self.vt, batch_size, conn is not None)
        return self._run("read_batch", steps, conn, queue=queue, vt=vt or self.vt, qty=batch_size)

    def read_with_poll(
        self,
        queue: str,
        vt: int | None = None,
        qty: int = 1,
        max_poll_seconds: int = 5,
        poll_interval_ms: int = 100,
        conditional: dict[str, object] | None = None,
        conn: Connection | None = None,
    ) -> list[Message]:
        """Read up to so many messages, and wait for the first one.

        The server wakes the call when there is one, so `poll_interval_ms` has no use here.
        """
        steps = operations.read(
            queue, vt or self.vt, qty, conn is not None, conditional=conditional, wait=max_poll_seconds
        )
        return self._run("read_with_poll", steps, conn, queue=queue, qty=qty, max_poll_seconds=max_poll_seconds)

    def read_grouped(
        self, queue: str, vt: int | None = None, qty: int = 1, conn: Connection | None = None
    ) -> list[Message]:
        """Read as many messages as possible of the first group, then of the next one."""
        steps = operations.read(queue, vt or self.vt, qty, conn is not None, ordering=wire.ORDERING_GROUPED)
        return self._run("read_grouped", steps, conn, queue=queue, qty=qty)

    def read_grouped_with_poll(
        self,
        queue: str,
        vt: int | None = None,
        qty: int = 1,
        max_poll_seconds: int = 5,
        poll_interval_ms: int = 100,
        conn: Connection | None = None,
    ) -> list[Message]:
        """Read as `read_grouped` does, and wait for the first message; see `read_with_poll`."""
        steps = operations.read(
            queue, vt or self.vt, qty, conn is not None, ordering=wire.ORDERING_GROUPED, wait=max_poll_seconds
        )
        return self._run("read_grouped_with_poll", steps, conn, queue=queue, qty=qty)

    def read_grouped_rr(
        self, queue: str, vt: int | None = None, qty: int = 1, conn: Connection | None = None
    ) -> list[Message]:
        """Read one message of each group in turn."""
        ordering = wire.ORDERING_GROUPED_ROUND_ROBIN
        steps = operations.read(queue, vt or self.vt, qty, conn is not None, ordering=ordering)
        return self._run("read_grouped_rr", steps, conn, queue=queue, qty=qty)

    def read_grouped_rr_with_poll(
        self,
        queue: str,
        vt: int | None = None,
        qty: int = 1,
        max_poll_seconds: int = 5,
        poll_interval_ms: int = 100,
        conn: Connection | None = None,
    ) -> list[Message]:
        """Read as `read_grouped_rr` does, and wait for the first message; see `read_with_poll`."""
        ordering = wire.ORDERING_GROUPED_ROUND_ROBIN
        steps = operations.read(queue, vt or self.vt, qty, conn is not None, ordering=ordering, wait=max_poll_seconds)
        return self._run("read_grouped_rr_with_poll", steps, conn, queue=queue, qty=qty)

    def pop(self, queue: str, qty: int = 1, conn: Connection | None = None) -> Message | list[Message] | None:
        """Take messages out of the queue: one, or None, where `qty` is 1, else a list. They are gone then."""
        messages = self._run("pop", operations.pop(queue, qty, conn is not None), conn, queue=queue, qty=qty)
        return next(iter(messages), None) if qty == 1 else messages

    # Settling

    def delete(self, queue: str, msg_id: int, conn: Connection | None = None) -> bool:
        """Delete a message. False means that there was none."""
        steps = operations.settle(queues.DeleteRequest, queue, [msg_id])
        return bool(self._run("delete", steps, conn, queue=queue, msg_id=msg_id))

    def delete_batch(self, queue: str, msg_ids: list[int], conn: Connection | None = None) -> list[int]:
        """Delete messages, all or none, and give the ids of those that were there."""
        steps = operations.settle(queues.DeleteRequest, queue, msg_ids)
        return self._run("delete_batch", steps, conn, queue=queue, count=len(msg_ids))

    def archive(self, queue: str, msg_id: int, conn: Connection | None = None) -> bool:
        """Move a message to the archive. False means that there was none."""
        steps = operations.settle(queues.ArchiveRequest, queue, [msg_id])
        return bool(self._run("archive", steps, conn, queue=queue, msg_id=msg_id))

    def archive_batch(self, queue: str, msg_ids: list[int], conn: Connection | None = None) -> list[int]:
        """Move messages to the archive, all or none, and give the ids of those that were there."""
        steps = operations.settle(queues.ArchiveRequest, queue, msg_ids)
        return self._run("archive_batch", steps, conn, queue=queue, count=len(msg_ids))

    def purge(self, queue: str, conn: Connection | None = None) -> int:
        """Remove all messages, and tell how many there were."""
        return self._run("purge", operations.purge(queue), conn, queue=queue)

    def set_vt(
        self,
        queue: str,
        msg_id: int | list[int] | tuple[int, ...],
        vt: float | datetime,
        conn: Connection | None = None,
    ) -> Message | list[Message] | None:
        """Set when messages become visible: in so many seconds, or at a moment.

        One id gives the message, or None if there is none; a list of ids gives a list.
        """
        several = not isinstance(msg_id, int)
        steps = operations.set_visibility_timeout(queue, [msg_id] if isinstance(msg_id, int) else msg_id, vt)
        messages = self._run("set_vt", steps, conn, queue=queue, msg_id=msg_id)
        return messages if several else next(iter(messages), None)

    # Metrics

    def metrics(self, queue: str, conn: Connection | None = None) -> QueueMetrics:
        """Count the messages of a queue."""
        return self._run("metrics", operations.metrics(queue), conn, queue=queue)

    def metrics_all(self, conn: Connection | None = None) -> list[QueueMetrics]:
        """Count the messages of all queues that can be measured."""
        return self._run("metrics_all", operations.metrics_all(), conn)

    # Notifications

    def enable_notify(self, queue: str, throttle_interval_ms: int = 250, conn: Connection | None = None) -> None:
        """Let Postgres notify about inserts, for those who listen there. The listeners of this package do without."""
        steps = operations.call(
            admin.EnableNotificationsRequest(
                queue=queue, throttle_interval=operations.milliseconds(throttle_interval_ms)
            )
        )
        self._run("enable_notify", steps, conn, queue=queue, throttle=throttle_interval_ms)

    def disable_notify(self, queue: str, conn: Connection | None = None) -> None:
        """Take that back."""
        steps = operations.call(admin.DisableNotificationsRequest(queue=queue))
        self._run("disable_notify", steps, conn, queue=queue)

    def update_notify(self, queue: str, throttle_interval_ms: int, conn: Connection | None = None) -> None:
        """Set the shortest time between two notifications."""
        steps = operations.call(
            admin.UpdateNotificationsRequest(
                queue=queue, throttle_interval=operations.milliseconds(throttle_interval_ms)
            )
        )
        self._run("update_notify", steps, conn, queue=queue, throttle=throttle_interval_ms)

    def list_notify_throttles(self, conn: Connection | None = None) -> list[NotificationThrottle]:
        """List the queues about which Postgres notifies."""
        return self._run("list_notify_throttles", operations.list_notify_throttles(), conn)

    # Utilities

    def validate_routing_key(self, routing_key: str, conn: Connection | None = None) -> bool:
        """Tell whether a routing key is well-formed."""
        steps = operations.is_valid(queues.ValidateNameRequest(routing_key=routing_key))
        return self._run("validate_routing_key", steps, conn, routing_key=routing_key)

    def validate_topic_pattern(self, pattern: str, conn: Connection | None = None) -> bool:
        """Tell whether a pattern is well-formed."""
        steps = operations.is_valid(queues.ValidateNameRequest(pattern=pattern))
        return self._run("validate_topic_pattern", steps, conn, pattern=pattern)

    def create_fifo_index(self, queue: str, conn: Connection | None = None) -> None:
        """Create an index on headers, for grouped reads."""
        self._run("create_fifo_index", operations.call(admin.CreateFifoIndexRequest(queue=queue)), conn, queue=queue)

    def create_fifo_indexes_all(self, conn: Connection | None = None) -> None:
        """Create that index on all queues."""
        self._run("create_fifo_indexes_all", operations.call(admin.CreateFifoIndexRequest(all_queues=True)), conn)

    def convert_archive_partitioned(
        self,
        queue: str,
        partition_interval: int | str = 10000,
        retention_interval: int | str = 100000,
        leading_partition: int = 10,
        conn: Connection | None = None,
    ) -> None:
        """Make the archive of a queue a partitioned table."""
        steps = operations.call(
            admin.ConvertArchivePartitionedRequest(
                queue=queue,
                partitioning=operations.partitioned(partition_interval, retention_interval),
                leading_partition=leading_partition,
            )
        )
        self._run("convert_archive_partitioned", steps, conn, queue=queue)

    def detach_archive(self, queue: str, conn: Connection | None = None) -> None:
        """Do nothing, as in pgmq itself, whose archives belong to no extension any more."""
        log_with_context(self.logger, logging.DEBUG, "detach_archive does nothing any more", queue=queue)
