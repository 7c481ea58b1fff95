# Made of _async/client.py by make_sync.py: change it there.
"""The client: one connection to a server."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc

from pgmq_grpc._convert import Span, limit, request, result
from pgmq_grpc._errors import UNDONE_IN_PART, PgmqError
from pgmq_grpc._json import JsonLibrary
from pgmq_grpc._options import Attempts, Metadata, Options, Tls
from pgmq_grpc._requests import batch, described, may_repeat, outgoing, settles_several
from pgmq_grpc._sync import io
from pgmq_grpc._sync.link import Subscription
from pgmq_grpc._sync.queue import Queue
from pgmq_grpc._sync.transaction import Transaction
from pgmq_grpc._sync.watcher import Watcher
from pgmq_grpc._types import (
    ClientInfo,
    CreatedQueue,
    Installation,
    NotificationSettings,
    Partitioning,
    QueueInfo,
    QueueKind,
    QueueLayout,
    QueueMetrics,
    QueuePolicy,
    ServerInfo,
    TopicBinding,
    TopicCopy,
    TopicResult,
)
from pgmq_grpc.v1 import admin_service_pb2 as admin
from pgmq_grpc.v1 import queue_service_pb2 as contract
from pgmq_grpc.v1 import topic_service_pb2 as topic

if TYPE_CHECKING:
    from typing_extensions import Self

    from pgmq_grpc._session import Streams

Q = TypeVar("Q")
R = TypeVar("R")

_AN_HOUR = 3600.0


class Client:
    """One connection to a server, or to a name behind which there are several, made by the first call.

        with Client("127.0.0.1:50051") as client:
            client.create_queue("orders")
            client.queue("orders").send({"order": 1})

    Args:
        target: `host:port`, `unix:/path` or `dns:///name:port`. Without one, the environment variable
            PGMQ_GRPC_TARGET, else 127.0.0.1:50051.
        tls: Encrypts the connection: True with the system's roots, a Tls with files, or credentials of gRPC.
        name: Says who this is, in the server's log and in `list_clients`.
        metadata: Goes with each call, such as credentials: a mapping, or a function that is asked before each call.
        timeout: The deadline of a unary call. A read that waits has that much more, and calls that build indexes
            have an hour unless `with_timeout` says otherwise.
        json: A JSON library, such as the module `json` or `orjson`. Without one, numbers keep all their digits, and
            those that are not whole are `Decimal`.
        interceptors: Interceptors of gRPC, such as OpenTelemetry's.
        channel_options: Options of gRPC's channel.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        tls: bool | Tls | grpc.ChannelCredentials = False,
        name: str = "",
        metadata: Metadata | None = None,
        timeout: Span = 30,
        json: JsonLibrary | None = None,
        interceptors: Sequence[io.Interceptor] = (),
        channel_options: Mapping[str, object] | None = None,
    ) -> None:
        self._options = Options.of(target, tls, name, metadata, limit(timeout), json, channel_options)
        self._connection = io.Connection(self._options, interceptors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._options.target}>"

    def close(self) -> None:
        """End all consumers, producers, watchers and sends, with what is under way, and then the connection.

        Consumers stop as by their `stop`, and it waits for handlers that run. Whatever is asked of the client
        afterwards, or of what came of it, is refused with a RuntimeError.
        """
        streams = self._connection.streams
        consumers = [link for link in streams.links.copy() if isinstance(link, Subscription)]
        for consumer in consumers:
            consumer.stop()
        # Their handlers may send, until they end.
        for consumer in consumers:
            consumer.close()
        streams.closing = True
        for link in streams.links.copy():
            link.close()
        deadline = time.monotonic() + self.timeout
        while streams.sends and time.monotonic() < deadline:
            io.pause(0.01)
        self._connection.close()

    def with_timeout(self, timeout: Span) -> Self:
        """Give the same client, with another deadline for its calls: `client.with_timeout(5).queue("orders")`."""
        other = copy.copy(self)
        other._options = replace(self._options, timeout=limit(timeout), timeout_given=True)  # noqa: SLF001
        return other

    @property
    def raw(self) -> io.Stubs:
        """The generated stubs, for what has no word here. Give their calls `client.metadata()` and a timeout."""
        return self._connection.stubs()

    @property
    def json(self) -> JsonLibrary:
        """The JSON library of bodies and headers."""
        return self._options.json

    @property
    def timeout(self) -> float:
        """The deadline of a call, in seconds."""
        return self._options.timeout

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Give the metadata that goes with a call."""
        return self._options.call_metadata()

    def queue(self, name: str) -> Queue:
        """Give a queue by its name. This asks nobody."""
        return Queue(self, name)

    def create_queue(
        self,
        queue: str,
        *,
        kind: QueueKind | None = None,
        partitioning: Partitioning | None = None,
        policy: QueuePolicy | None = None,
        fail_if_exists: bool = False,
        layout: QueueLayout | None = None,
    ) -> CreatedQueue:
        """Create a queue with its archive; one that is there as described is left as it is."""
        asked = request(
            contract.CreateQueueRequest,
            queue=queue,
            kind=kind,
            partitioning=partitioning,
            policy=policy,
            fail_if_exists=fail_if_exists,
            layout=layout,
        )
        return result(CreatedQueue, self.call(self.raw.queue.CreateQueue, asked, repeat=True))

    def get_queue(self, queue: str) -> QueueInfo:
        """Describe a queue, with its policy."""
        reply = self.call(self.raw.queue.GetQueue, contract.GetQueueRequest(queue=queue), repeat=True)
        return result(QueueInfo, reply.queue)

    def list_queues(self, *, prefix: str = "", dead_letter_queue: str = "", page_size: int = 0) -> Iterator[QueueInfo]:
        """List queues by name: all, those of a prefix, or those that use a dead-letter queue."""
        asked = contract.ListQueuesRequest(prefix=prefix, dead_letter_queue=dead_letter_queue, page_size=page_size)
        for page in self.pages(self.raw.queue.ListQueues, asked):
            for each in page.queues:
                yield result(QueueInfo, each)

    def update_queue(self, queue: str, policy: QueuePolicy | None = None, *, clear: Iterable[str] = ()) -> QueueInfo:
        """Change the fields of a queue's policy that are set here, and clear those that are named; the others stay."""
        given = (
            [] if policy is None else [each.name for each in fields(policy) if getattr(policy, each.name) is not None]
        )
        asked = request(admin.UpdateQueueRequest, queue=queue, policy=policy, update_mask=[*given, *clear])
        reply = self.call(self.raw.admin.UpdateQueue, asked, repeat=True)
        return result(QueueInfo, reply.queue)

    def drop_queue(self, queue: str) -> None:
        """Remove a queue for good, with its messages and its archive."""
        self.call(self.raw.queue.DropQueue, contract.DropQueueRequest(queue=queue))

    def purge_queue(self, queue: str) -> int:
        """Remove all messages of a queue for good, and tell how many. The archive stays."""
        return (self.call(self.raw.queue.PurgeQueue, contract.PurgeQueueRequest(queue=queue))).purged_count

    def get_queue_metrics(self, queue: str, *, include_archive: bool = False) -> QueueMetrics:
        """Count the messages of a queue. It looks at every row of it."""
        asked = contract.GetQueueMetricsRequest(queue=queue, include_archive=include_archive)
        reply = self.call(self.raw.queue.GetQueueMetrics, asked, repeat=True)
        return result(QueueMetrics, reply.metrics)

    def list_queue_metrics(
        self, *, prefix: str = "", include_archive: bool = False, page_size: int = 0
    ) -> Iterator[QueueMetrics]:
        """Count the messages of many queues, by name. One that cannot be measured has `error` set."""
        asked = contract.ListQueueMetricsRequest(prefix=prefix, include_archive=include_archive, page_size=page_size)
        for page in self.pages(self.raw.queue.ListQueueMetrics, asked):
            for each in page.metrics:
                yield result(QueueMetrics, each)

    def set_queue_layout(self, queue: str, layout: QueueLayout) -> QueueInfo:
        """Change how the table of a queue is laid out. Messages and answers stay the same."""
        asked = request(admin.SetQueueLayoutRequest, queue=queue, layout=layout)
        reply = self.call(self.raw.admin.SetQueueLayout, asked, patience=self._long())
        return result(QueueInfo, reply.queue)

    def send_topic(
        self,
        routing_key: str,
        message: object,
        *,
        headers: object = None,
        delay: Span | None = None,
        visible_at: datetime | None = None,
        group: str | None = None,
        deduplication_id: str | None = None,
        idempotent: bool = False,
        require_match: bool = False,
    ) -> TopicResult:
        """Send a message to every queue that is bound to a matching pattern; see `send` of a queue."""
        given = described(message, headers, delay, visible_at, group, deduplication_id)
        sent = topic.SendTopicRequest(routing_key=routing_key, require_match=require_match)
        sent = outgoing(sent, given, self.json, idempotent=idempotent)
        reply = self.call(self.raw.topic.SendTopic, sent, repeat=bool(sent.deduplication_id))
        return result(TopicResult, reply)

    def send_topic_batch(
        self, routing_key: str, messages: Iterable[object], *, idempotent: bool = False, require_match: bool = False
    ) -> list[TopicCopy]:
        """Send several messages with one routing key: all copies, or none."""
        written = batch(messages, self.json, idempotent=idempotent)
        sent = topic.SendTopicBatchRequest(routing_key=routing_key, messages=written, require_match=require_match)
        reply = self.call(self.raw.topic.SendTopicBatch, sent, repeat=may_repeat(written))
        return [result(TopicCopy, each) for each in reply.copies]

    def bind_topic(self, pattern: str, queue: str) -> bool:
        """Let a queue receive what is sent by routing keys that match, and tell whether that is new."""
        asked = topic.BindTopicRequest(pattern=pattern, queue=queue)
        return (self.call(self.raw.topic.BindTopic, asked, repeat=True)).created

    def unbind_topic(self, pattern: str, queue: str) -> bool:
        """Remove a binding, and tell whether there was one."""
        asked = topic.UnbindTopicRequest(pattern=pattern, queue=queue)
        return (self.call(self.raw.topic.UnbindTopic, asked, repeat=True)).removed

    def list_topic_bindings(self, *, queue: str = "", page_size: int = 0) -> Iterator[TopicBinding]:
        """List bindings by pattern and queue: all, or those of one queue."""
        asked = topic.ListTopicBindingsRequest(queue=queue, page_size=page_size)
        for page in self.pages(self.raw.topic.ListTopicBindings, asked):
            for each in page.bindings:
                yield result(TopicBinding, each)

    def test_routing(self, routing_key: str) -> list[TopicBinding]:
        """Show which bindings match a routing key. Nothing is sent."""
        asked = topic.TestRoutingRequest(routing_key=routing_key)
        reply = self.call(self.raw.topic.TestRouting, asked, repeat=True)
        return [result(TopicBinding, each) for each in reply.matches]

    def transact(self, *, deduplication_id: str | None = None, idempotent: bool = False) -> Transaction:
        """Gather operations that are applied together, at the end of the `with` block. See Transaction."""
        return Transaction(self, deduplication_id, idempotent=idempotent)

    def watch(self, queues: Iterable[str], *, heartbeat_interval: Span | None = None) -> Watcher:
        """Stream what happens to queues, without reading from them."""
        return Watcher(self, list(queues), heartbeat_interval)

    def validate_name(
        self, *, queue: str | None = None, routing_key: str | None = None, pattern: str | None = None
    ) -> None:
        """Raise unless a name, one at a time, is well-formed. Whether anything of that name exists does not matter."""
        asked = request(contract.ValidateNameRequest, queue=queue, routing_key=routing_key, pattern=pattern)
        self.call(self.raw.queue.ValidateName, asked, repeat=True)

    def get_server_info(self) -> ServerInfo:
        """Tell versions, and what works with them."""
        asked = contract.GetServerInfoRequest()
        return result(ServerInfo, self.call(self.raw.queue.GetServerInfo, asked, repeat=True))

    def create_fifo_index(self, queue: str | None = None) -> None:
        """Create the index for grouped reads on one queue, or on all."""
        asked = request(admin.CreateFifoIndexRequest, queue=queue, all_queues=True if queue is None else None)
        self.call(self.raw.admin.CreateFifoIndex, asked, patience=self._long())

    def convert_archive_partitioned(
        self, queue: str, partitioning: Partitioning | None = None, *, leading_partition: int = 0
    ) -> None:
        """Turn the archive of a queue into a partitioned table."""
        asked = request(
            admin.ConvertArchivePartitionedRequest,
            queue=queue,
            partitioning=partitioning,
            leading_partition=leading_partition,
        )
        self.call(self.raw.admin.ConvertArchivePartitioned, asked, patience=self._long())

    def enable_notifications(self, queue: str, throttle_interval: Span | None = None) -> NotificationSettings:
        """Let Postgres notify plain SQL listeners of inserts. Readers of this server do not need it."""
        asked = request(admin.EnableNotificationsRequest, queue=queue, throttle_interval=throttle_interval)
        return result(NotificationSettings, (self.call(self.raw.admin.EnableNotifications, asked)).settings)

    def update_notifications(self, queue: str, throttle_interval: Span | None = None) -> NotificationSettings:
        """Change the interval of a queue that notifies."""
        asked = request(admin.UpdateNotificationsRequest, queue=queue, throttle_interval=throttle_interval)
        return result(NotificationSettings, (self.call(self.raw.admin.UpdateNotifications, asked)).settings)

    def disable_notifications(self, queue: str) -> None:
        """Stop the notifications of a queue, if there are any."""
        self.call(self.raw.admin.DisableNotifications, admin.DisableNotificationsRequest(queue=queue))

    def list_notifications(self, *, prefix: str = "", page_size: int = 0) -> Iterator[NotificationSettings]:
        """List the queues that notify, by name."""
        asked = admin.ListNotificationsRequest(prefix=prefix, page_size=page_size)
        for page in self.pages(self.raw.admin.ListNotifications, asked):
            for each in page.notifications:
                yield result(NotificationSettings, each)

    def list_clients(self, *, queue: str = "", prefix: str = "", page_size: int = 0) -> Iterator[ClientInfo]:
        """List who sent or consumed within the last minute."""
        asked = admin.ListClientsRequest(queue=queue, prefix=prefix, page_size=page_size)
        for page in self.pages(self.raw.admin.ListClients, asked):
            for each in page.clients:
                yield result(ClientInfo, each)

    def install_pgmq(self) -> Installation:
        """Install pgmq in the database, or upgrade it to what the server carries."""
        reply = self.call(self.raw.admin.InstallPgmq, admin.InstallPgmqRequest(), patience=self._long())
        return result(Installation, reply)

    def call(self, method: io.UnaryMethod[Q, R], asked: Q, *, repeat: bool = False, patience: float = 0) -> R:
        """Make a unary call, and make it again where that is safe.

        `repeat` says that the contract allows it after any UNAVAILABLE. `patience` is added to the deadline.
        """
        attempts = Attempts(self.timeout + patience, repeatable=repeat)
        unknown = False
        while True:
            try:
                return method(asked, timeout=attempts.remaining(), metadata=self.metadata())
            except grpc.RpcError as error:
                failure = PgmqError.from_rpc(error)
            except PgmqError as error:
                failure = error
            if failure.reason in UNDONE_IN_PART and settles_several(asked):
                failure.outcome_unknown = True
            unknown = unknown or failure.outcome_unknown
            pause = attempts.pause_after(failure)
            if pause is None:
                failure.outcome_unknown = unknown
                raise failure
            io.pause(pause)
            # It may be closed by now.
            self._connection.stubs()

    def pages(self, method: io.UnaryMethod[Q, R], asked: Q) -> Iterator[R]:
        """Give the pages of a list, each when it is asked for."""
        following = cast("Any", asked)
        while True:
            page = self.call(method, asked, repeat=True)
            yield page
            following.page_token = cast("Any", page).next_page_token
            if not following.page_token:
                return

    def streams(self) -> Streams:
        """Give what is under way on the channel, which is opened if it is not there."""
        self._connection.stubs()
        streams = self._connection.streams
        if streams.closing:
            raise RuntimeError("the client is closed")
        return streams

    def _long(self) -> float:
        return 0 if self._options.timeout_given else _AN_HOUR
