"""Between the values of cases and those of the client."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from pgmq_grpc import (
    AsyncArchivedMessage,
    AsyncMessage,
    DeadLetterPolicy,
    JsonText,
    OutgoingMessage,
    Partitioning,
    PgmqError,
    QueuePolicy,
    RetryBackoff,
)


class SavedMessage(dict[str, Any]):
    """What a case sees of a message, with the message itself for the words that settle it."""

    def __init__(self, message: AsyncMessage, json: Any, **more: Any) -> None:
        super().__init__(
            queue=message.queue,
            msg_id=message.msg_id,
            read_ct=message.read_ct,
            enqueued_at=plain(message.enqueued_at),
            last_read_at=plain(message.last_read_at),
            vt=plain(message.vt),
            message=message.message,
            message_text=message.message_text,
            message_json=json.dumps(message.message),
            headers=message.headers,
            headers_text=message.headers_text,
            receipt=message.receipt,
            **more,
        )
        self.message = message


def plain(value: Any, json: Any = None) -> Any:
    """What a case sees of a value that the client gave."""
    if isinstance(value, PgmqError):
        return error(value)
    if isinstance(value, AsyncArchivedMessage):
        return SavedMessage(value.message, json, archived_at=plain(value.archived_at))
    if isinstance(value, AsyncMessage):
        return SavedMessage(value, json)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, list):
        return [plain(element, json) for element in value]
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name), json) for field in fields(value)}
    return value


def error(failure: PgmqError) -> dict[str, Any]:
    """What a case sees of an error."""
    return {
        "code": failure.code.name,
        "reason": failure.reason,
        "field": failure.field,
        "metadata": failure.metadata,
        "request_id": failure.request_id,
        "retry_delay": plain(failure.retry_delay),
        "outcome_unknown": failure.outcome_unknown,
    }


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a word as the client takes them, those of a message and the items of settling apart."""
    return {name: _READERS.get(name, _same)(value) for name, value in arguments.items()}


def outgoing(message: dict[str, Any]) -> OutgoingMessage:
    """A message to be sent."""
    return OutgoingMessage(**written(message))


def written(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a message, with texts in the places of values."""
    read = given(arguments)
    for name in ("message", "headers"):
        if f"{name}_text" in read:
            read[name] = JsonText(read.pop(f"{name}_text"))
    return read


def items(arguments: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The messages, receipts or ids among arguments, and the other arguments."""
    rest = given(arguments)
    if "messages" in rest:
        return [saved.message for saved in rest.pop("messages")], rest
    return rest.pop("receipts" if "receipts" in rest else "msg_ids"), rest


def _same(value: Any) -> Any:
    return value


def _moment(value: Any) -> datetime:
    seconds = time.time() + value["in_seconds"] if isinstance(value, dict) else value
    return datetime.fromtimestamp(seconds, timezone.utc)


def _policy(value: dict[str, Any]) -> QueuePolicy:
    policy = dict(value)
    if "dead_letter" in policy:
        policy["dead_letter"] = DeadLetterPolicy(**policy["dead_letter"])
    if "retry_backoff" in policy:
        policy["retry_backoff"] = RetryBackoff(**policy["retry_backoff"])
    return QueuePolicy(**policy)


def _partitioning(value: dict[str, Any]) -> Partitioning:
    return Partitioning(**value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "visible_at": _moment,
    "archived_after": _moment,
    "archived_before": _moment,
    "policy": _policy,
    "partitioning": _partitioning,
}
