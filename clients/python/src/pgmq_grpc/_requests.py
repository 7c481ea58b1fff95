"""Requests and replies that several calls share. Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import uuid4

from grpc import StatusCode

from pgmq_grpc._convert import duration, timestamp, word
from pgmq_grpc._errors import PgmqError
from pgmq_grpc._json import JsonLibrary, text_of
from pgmq_grpc._message import MessageFields
from pgmq_grpc._types import Outcome, OutgoingMessage
from pgmq_grpc.v1 import message_pb2, queue_service_pb2, topic_service_pb2

if TYPE_CHECKING:
    from datetime import datetime

    from google.protobuf.message import Message as Proto

    from pgmq_grpc._convert import Span

# The server takes requests of up to 8 MiB; this leaves room for what surrounds a message.
_MOST_BYTES = (8 << 20) - 4096

Item = MessageFields | str | int
"""A message that was read, or its receipt, or an id."""
Items = Item | Iterable[Item]

Outgoing = TypeVar(
    "Outgoing",
    queue_service_pb2.SendRequest,
    message_pb2.OutgoingMessage,
    topic_service_pb2.SendTopicRequest,
)
Settling = TypeVar(
    "Settling",
    queue_service_pb2.DeleteRequest,
    queue_service_pb2.ArchiveRequest,
    queue_service_pb2.ReleaseRequest,
    queue_service_pb2.DeadLetterRequest,
    queue_service_pb2.SetVisibilityTimeoutRequest,
)


def described(
    message: object,
    headers: object,
    delay: Span | None,
    visible_at: datetime | None,
    group: str | None,
    deduplication_id: str | None,
) -> OutgoingMessage:
    """Gather what is said of one message."""
    if isinstance(message, OutgoingMessage):
        return message
    return OutgoingMessage(message, headers, delay, visible_at, group, deduplication_id)


def outgoing(request: Outgoing, given: object, library: JsonLibrary, *, idempotent: bool) -> Outgoing:
    """Write a message into the request that sends it."""
    message = given if isinstance(given, OutgoingMessage) else OutgoingMessage(given)
    request.message = text_of(library, message.message)
    if message.headers is not None:
        request.headers = text_of(library, message.headers)
    if message.delay is not None:
        request.delay.CopyFrom(duration(message.delay))
    if message.visible_at is not None:
        # Both at once is for the server to refuse, which never sees the first one of a oneof.
        if message.delay is not None:
            raise ValueError("delay and visible_at exclude each other")
        request.visible_at.CopyFrom(timestamp(message.visible_at))
    if message.group is not None:
        request.group = message.group
    if message.deduplication_id is not None:
        request.deduplication_id = message.deduplication_id
    elif idempotent:
        request.deduplication_id = uuid4().hex
    return request


def refuse_too_large(part: Proto) -> None:
    """Refuse what the server would not read, before it is the end of a stream that others share."""
    if part.ByteSize() > _MOST_BYTES:
        text = "the message is larger than a request can be"
        code = StatusCode.INVALID_ARGUMENT
        raise PgmqError(code, text, reason="MESSAGE_TOO_LARGE", outcome_unknown=False)


def batch(messages: Iterable[object], library: JsonLibrary, *, idempotent: bool) -> list[message_pb2.OutgoingMessage]:
    """Write the messages of a batch: values, or OutgoingMessage where there is more to say."""
    if isinstance(messages, (str, bytes, bytearray, Mapping)):
        # They can be iterated over, and nobody means their characters or keys.
        raise TypeError(f"a batch is a list of messages, and not one {type(messages).__name__}")
    return [outgoing(message_pb2.OutgoingMessage(), each, library, idempotent=idempotent) for each in messages]


def may_repeat(messages: Iterable[message_pb2.OutgoingMessage]) -> bool:
    """Tell whether sending these again stores none of them twice."""
    return all(message.deduplication_id for message in messages)


def items_of(items: Items) -> list[Item]:
    """Give the items as a list, also a single one."""
    if isinstance(items, (str, int, MessageFields)):
        return [items]
    return list(items)


def settling(request: Settling, items: list[Item]) -> Settling:
    """Write messages, receipts or ids into a request."""
    for item in items:
        if isinstance(item, int):
            # Only requests that take ids have the field; the others are refused here, by protobuf.
            cast("Any", request).msg_ids.append(item)
        else:
            request.receipts.append(item if isinstance(item, str) else item.receipt)
    return request


def settles_several(asked: object) -> bool:
    """Tell whether a request settles more than one message, each by itself."""
    return isinstance(asked, Settling.__constraints__) and len(asked.receipts) + len(getattr(asked, "msg_ids", ())) > 1


def outcome(result: message_pb2.ItemResult) -> Outcome:
    """Read an outcome. One that is unknown here is a text of its own, which is none of those that mean success."""
    return cast("Outcome", word(message_pb2.Outcome.DESCRIPTOR, result.outcome) or "STALE")


def outcomes(results: Iterable[message_pb2.ItemResult], items: Iterable[Item] = ()) -> list[Outcome]:
    """Read the outcomes, and note at the messages that they are settled."""
    for item in items:
        if isinstance(item, MessageFields):
            item.mark_settled()
    return [outcome(result) for result in results]
