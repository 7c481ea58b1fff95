"""What the methods of ``PGMQueue`` return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgmq_grpc.pgmqueue import messages as pgmq

if TYPE_CHECKING:
    from datetime import datetime


__all__ = ["Message", "QueueMetrics"]


@dataclass
class Message:
    """A message. Moments are in UTC."""

    msg_id: int
    read_ct: int
    enqueued_at: datetime
    vt: datetime
    message: Any


@dataclass
class QueueMetrics:
    """Counts of a queue. Ages are None for a queue that is empty."""

    queue_name: str
    queue_length: int
    newest_msg_age_sec: int | None
    oldest_msg_age_sec: int | None
    total_messages: int
    scrape_time: datetime


def reduced(message: pgmq.Message) -> Message:
    """Leave out what this interface has no place for."""
    return Message(message.msg_id, message.read_ct, message.enqueued_at, message.vt, message.message)


def the_one(found: pgmq.Message | list[pgmq.Message] | None) -> Message:
    """Give the message that was asked for. None is an `IndexError`."""
    if not isinstance(found, pgmq.Message):
        raise IndexError("there is no message")
    return reduced(found)


def reduced_metrics(metrics: pgmq.QueueMetrics) -> QueueMetrics:
    """Leave out what this interface has no place for."""
    return QueueMetrics(
        metrics.queue_name,
        metrics.queue_length,
        metrics.newest_msg_age_sec,
        metrics.oldest_msg_age_sec,
        metrics.total_messages,
        metrics.scrape_time,
    )
