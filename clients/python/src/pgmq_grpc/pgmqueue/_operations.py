"""What each method of ``PGMQueue`` does, once for the plain and the asynchronous class.

An operation asks for calls by yielding requests of the contract, is given their replies, and returns what the method
returns. It knows nothing of connections: the same steps run as calls of their own, or in a transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as Request
from google.protobuf.timestamp_pb2 import Timestamp

from pgmq_grpc._errors import PgmqError
from pgmq_grpc.v1 import admin_service_pb2 as admin
from pgmq_grpc.v1 import message_pb2 as wire
from pgmq_grpc.v1 import queue_service_pb2 as queues
from pgmq_grpc.v1 import topic_service_pb2 as topics

from . import _json
from .messages import (
    BatchTopicResult,
    Message,
    NotificationThrottle,
    QueueMetrics,
    QueueRecord,
    RoutingResult,
    TopicBinding,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

T = TypeVar("T")
Steps = Generator[Request, Any, T]

# What the server takes in one call, and what is put into one, with room for what is around the texts.
MOST_ITEMS = 1_000
MOST_BYTES = 4 * 2**20
LONGEST_WAIT = 50.0
# A reply that is larger may have been cut to its size, so that fewer messages than asked for do not mean that there
# are no more.
LARGE_REPLY = 2**20
LONGEST_PAGE = 1_000


# Asked for in place of a call: those that follow are one transaction, and hold as a whole or not at all.
TOGETHER = Request()


# Queues


def create_queue(
    queue: str, inside: bool, kind: queues.QueueKind.ValueType, partitioning: queues.Partitioning | None = None
) -> Steps[None]:
    """Create a queue. As in pgmq, one that is there stays as it is, whatever its kind."""
    # A transaction ends with the first call that fails, so there the question comes first.
    if inside and (yield from _exists(queue)):
        return
    try:
        yield queues.CreateQueueRequest(queue=queue, kind=kind, partitioning=partitioning)
    except PgmqError as error:
        if error.reason != "QUEUE_KIND_MISMATCH":
            raise


def partitioned(interval: int | str, retention: int | str) -> queues.Partitioning:
    """Say how a queue or an archive is cut."""
    return queues.Partitioning(interval=str(interval), retention=str(retention))


def drop_queue(queue: str, inside: bool) -> Steps[bool]:
    """Drop a queue. False means that there was none."""
    if inside and not (yield from _exists(queue)):
        return False
    try:
        yield queues.DropQueueRequest(queue=queue)
    except PgmqError as error:
        if error.reason != "QUEUE_NOT_FOUND":
            raise
        return False
    return True


def list_queues(prefix: str = "") -> Steps[list[QueueRecord]]:
    """List the queues, of which the names start with `prefix`, in the order of their names."""
    records = yield from _all(queues.ListQueuesRequest(page_size=LONGEST_PAGE, prefix=prefix), "queues")
    return [
        QueueRecord(
            queue_name=record.name,
            is_partitioned=record.kind == queues.QUEUE_KIND_PARTITIONED,
            is_unlogged=record.kind == queues.QUEUE_KIND_UNLOGGED,
            created_at=moment(record.created_at),
        )
        for record in records
    ]


def _exists(queue: str) -> Steps[bool]:
    return any(record.queue_name == queue for record in (yield from list_queues(queue)))


def _all(request: Any, field: str) -> Steps[list[Any]]:
    found: list[Any] = []
    while True:
        reply = yield request
        found.extend(getattr(reply, field))
        if not reply.next_page_token:
            return found
        request.page_token = reply.next_page_token


def purge(queue: str) -> Steps[int]:
    """Remove all messages, and tell how many there were."""
    reply = yield queues.PurgeQueueRequest(queue=queue)
    return int(reply.purged_count)


def metrics(queue: str) -> Steps[QueueMetrics]:
    """Count the messages of one queue."""
    reply = yield queues.GetQueueMetricsRequest(queue=queue)
    return _metrics(reply.metrics)


def metrics_all() -> Steps[list[QueueMetrics]]:
    """Count the messages of all queues, but for those that cannot be measured."""
    found = yield from _all(queues.ListQueueMetricsRequest(page_size=LONGEST_PAGE), "metrics")
    return [_metrics(counted) for counted in found if not counted.HasField("error")]


def _metrics(counted: queues.QueueMetrics) -> QueueMetrics:
    def age(name: str) -> int | None:
        return int(getattr(counted, name).seconds) if counted.HasField(name) else None  # type: ignore[arg-type]

    return QueueMetrics(
        queue_name=counted.queue,
        queue_length=counted.queue_length,
        newest_msg_age_sec=age("newest_message_age"),
        oldest_msg_age_sec=age("oldest_message_age"),
        total_messages=counted.total_messages,
        scrape_time=moment(counted.scraped_at),
        queue_visible_length=counted.visible_length,
    )


def call(request: Request) -> Steps[None]:
    """Make one call of which the reply does not matter."""
    yield request


def is_valid(request: queues.ValidateNameRequest) -> Steps[bool]:
    """Tell whether a name is well-formed."""
    try:
        yield request
    except PgmqError as error:
        if error.reason in ("INVALID_ROUTING_KEY", "INVALID_PATTERN", "MISSING_FIELD"):
            return False
        raise
    return True


# Sending


def send(queue: str, message: object, headers: object, delay: float | datetime | None) -> Steps[int]:
    """Send one message, and give its id."""
    request = queues.SendRequest(queue=queue, message=_json.encode(message), headers=_headers(headers))
    _schedule(request, delay)
    reply = yield request
    return int(reply.msg_id)


def send_batch(
    queue: str, messages: Sequence[object], headers: Sequence[object] | None, delay: float | datetime | None
) -> Steps[list[int]]:
    """Send messages, all or none, and give their ids."""
    chunks = _chunks(messages, headers, delay)
    if len(chunks) > 1:
        yield TOGETHER
    ids: list[int] = []
    for chunk in chunks:
        reply = yield queues.SendBatchRequest(queue=queue, messages=chunk)
        ids.extend(result.msg_id for result in reply.results)
    return ids


def send_topic(routing_key: str, message: object, headers: object, delay: float | datetime | None) -> Steps[int]:
    """Send one message by a routing key, and tell how many queues got it."""
    request = topics.SendTopicRequest(routing_key=routing_key, message=_json.encode(message), headers=_headers(headers))
    _schedule(request, delay)
    reply = yield request
    return len(reply.copies)


def send_batch_topic(
    routing_key: str, messages: Sequence[object], headers: Sequence[object] | None, delay: float | datetime | None
) -> Steps[list[BatchTopicResult]]:
    """Send messages by a routing key, all or none, and give the id of each copy."""
    chunks = _chunks(messages, headers, delay)
    if len(chunks) > 1:
        yield TOGETHER
    copies: list[BatchTopicResult] = []
    for chunk in chunks:
        reply = yield topics.SendTopicBatchRequest(routing_key=routing_key, messages=chunk)
        copies.extend(BatchTopicResult(copy.queue, copy.msg_id) for copy in reply.copies)
    return copies


def _headers(headers: object) -> str:
    return "" if headers is None else _json.encode(headers)


def _schedule(message: Any, delay: float | datetime | None) -> None:
    # A span or a moment in the past means at once, as in pgmq.
    if isinstance(delay, datetime):
        message.visible_at.CopyFrom(timestamp(delay))
    elif delay is not None:
        message.delay.CopyFrom(duration(max(delay, 0)))


def _chunks(
    messages: Sequence[object], headers: Sequence[object] | None, delay: float | datetime | None
) -> list[list[wire.OutgoingMessage]]:
    """Write messages, in lists that the server takes in one call each."""
    if not messages:
        return []
    if headers is not None and len(headers) != len(messages):
        raise ValueError("headers list must match messages list length")
    chunks: list[list[wire.OutgoingMessage]] = [[]]
    size = 0
    for index, message in enumerate(messages):
        text = _headers(headers[index]) if headers is not None else ""
        outgoing = wire.OutgoingMessage(message=_json.encode(message), headers=text)
        _schedule(outgoing, delay)
        weight = outgoing.ByteSize() + 8
        if chunks[-1] and (len(chunks[-1]) == MOST_ITEMS or size + weight > MOST_BYTES):
            chunks.append([])
            size = 0
        chunks[-1].append(outgoing)
        size += weight
    return chunks


def unbind_topic(pattern: str, queue: str) -> Steps[bool]:
    """Remove a binding. False means that there was none."""
    reply = yield topics.UnbindTopicRequest(pattern=pattern, queue=queue)
    return bool(reply.removed)


def list_topic_bindings(queue: str | None) -> Steps[list[TopicBinding]]:
    """List all bindings, or those of a queue."""
    request = topics.ListTopicBindingsRequest(page_size=LONGEST_PAGE, queue=queue or "")
    bindings = yield from _all(request, "bindings")
    return [
        TopicBinding(binding.pattern, binding.queue, moment(binding.bound_at), binding.compiled_regex)
        for binding in bindings
    ]


def match_routing(routing_key: str) -> Steps[list[RoutingResult]]:
    """Tell which bindings match a routing key."""
    reply = yield topics.TestRoutingRequest(routing_key=routing_key)
    return [RoutingResult(match.pattern, match.queue, match.compiled_regex) for match in reply.matches]


# Reading


def read(
    queue: str,
    visibility_timeout: float,
    quantity: int | None,
    inside: bool,
    *,
    ordering: wire.Ordering.ValueType = wire.ORDERING_UNORDERED,
    conditional: object = None,
    wait: float = 0,
) -> Steps[list[Message]]:
    """Read up to so many messages, all there are for None, and wait for the first one if asked to."""
    settings = queues.ReadBatchRequest(
        queue=queue,
        visibility_timeout=duration(visibility_timeout),
        conditional=_json.encode(conditional) if conditional else "",
        ordering=ordering,
    )
    end = time.monotonic() + wait

    def ask(count: int, first: bool) -> Request:
        settings.max_messages = count
        # Unset would mean what the queue's policy says.
        remaining = max(end - time.monotonic(), 0) if first else 0
        settings.wait.CopyFrom(duration(min(remaining, LONGEST_WAIT)))
        return settings

    messages = yield from _collect(quantity, inside, ask)
    while not messages and time.monotonic() < end:
        messages = yield from _collect(quantity, inside, ask)
    return messages


def pop(queue: str, quantity: int | None, inside: bool) -> Steps[list[Message]]:
    """Take up to so many messages, all there are for None."""

    def ask(count: int, _first: bool) -> Request:
        return queues.PopRequest(queue=queue, max_messages=count)

    return (yield from _collect(quantity, inside, ask))


def _collect(quantity: int | None, inside: bool, ask: Callable[[int, bool], Request]) -> Steps[list[Message]]:
    messages: list[Message] = []
    while quantity is None or len(messages) < quantity:
        asked = MOST_ITEMS if quantity is None else min(quantity - len(messages), MOST_ITEMS)
        try:
            reply = yield ask(asked, not messages)
        except PgmqError:
            # What was taken is not to be lost: the caller has it, and meets the error with the next call. A
            # transaction has given it back.
            if messages and not inside:
                return messages
            raise
        messages.extend(map(_received, reply.messages))
        if len(reply.messages) < asked and (not reply.messages or reply.ByteSize() < LARGE_REPLY):
            break
    return messages


def _received(message: wire.Message) -> Message:
    """Make a message of pgmq-py of one of the contract."""
    return Message(
        msg_id=message.msg_id,
        read_ct=message.read_ct,
        enqueued_at=moment(message.enqueued_at),
        last_read_at=moment(message.last_read_at) if message.HasField("last_read_at") else None,
        vt=moment(message.vt),
        message=_json.decode(message.message),
        headers=_json.decode(message.headers),  # type: ignore[arg-type] # The contract says that it is an object.
    )


# Settling


def settle(kind: Any, queue: str, msg_ids: Sequence[int]) -> Steps[list[int]]:
    """Delete or archive messages by id, and give the ids of those that were there."""
    cut = _parts(msg_ids)
    if len(cut) > 1:
        yield TOGETHER
    done: list[int] = []
    for ids in cut:
        reply = yield kind(queue=queue, msg_ids=ids)
        done.extend(
            msg_id for msg_id, result in zip(ids, reply.results, strict=True) if result.outcome == wire.OUTCOME_DONE
        )
    return done


def _parts(msg_ids: Iterable[int]) -> list[list[int]]:
    """Cut ids, each taken once, into lists that the server takes in one call each."""
    distinct = list(dict.fromkeys(msg_ids))
    return [distinct[start : start + MOST_ITEMS] for start in range(0, len(distinct), MOST_ITEMS)]


def set_visibility_timeout(queue: str, msg_ids: Iterable[int], vt: float | datetime) -> Steps[list[Message]]:
    """Set when messages become visible, and give those that were there."""
    cut = _parts(msg_ids)
    if len(cut) > 1:
        yield TOGETHER
    messages: list[Message] = []
    for ids in cut:
        missing = ids
        while missing:
            request = queues.SetVisibilityTimeoutRequest(queue=queue, msg_ids=missing, return_messages=True)
            if isinstance(vt, datetime):
                request.visible_at.CopyFrom(timestamp(vt))
            else:
                request.visibility_timeout.CopyFrom(duration(max(vt, 0)))
            reply = yield request
            messages.extend(map(_received, reply.messages))
            # Messages that did not fit the reply are asked for again.
            found = {message.msg_id for message in reply.messages}
            missing = [
                msg_id
                for msg_id, result in zip(missing, reply.results, strict=True)
                if found and result.outcome == wire.OUTCOME_DONE and msg_id not in found
            ]
    return messages


# Notifications


def list_notify_throttles() -> Steps[list[NotificationThrottle]]:
    """List the queues that notify about inserts."""
    settings = yield from _all(admin.ListNotificationsRequest(page_size=LONGEST_PAGE), "notifications")
    return [
        NotificationThrottle(
            queue_name=setting.queue,
            throttle_interval_ms=setting.throttle_interval.ToMilliseconds(),
            last_notified_at=moment(setting.last_notified_at),
        )
        for setting in settings
    ]


# Values


def duration(seconds: float) -> Duration:
    """Write seconds as a span."""
    span = Duration()
    span.FromTimedelta(timedelta(seconds=seconds))
    return span


def milliseconds(count: int) -> Duration:
    """Write milliseconds as a span."""
    return duration(count / 1_000)


def timestamp(when: datetime) -> Timestamp:
    """Write a moment. One without a time zone is taken as UTC, which databases in containers run in."""
    written = Timestamp()
    written.FromDatetime(when if when.tzinfo else when.replace(tzinfo=timezone.utc))
    return written


def moment(written: Timestamp) -> datetime:
    """Read a moment, which is in UTC. One that is unset is 1970."""
    return written.ToDatetime(tzinfo=timezone.utc)
