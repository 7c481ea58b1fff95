"""What the methods of ``PGMQueue`` return: the dataclasses of pgmq-py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "BatchTopicResult",
    "Message",
    "NotificationThrottle",
    "QueueMetrics",
    "QueueRecord",
    "RoutingResult",
    "TopicBinding",
]


@dataclass
class Message:
    """A message, as a row of ``pgmq.message_record``. Moments are in UTC."""

    msg_id: int
    read_ct: int
    enqueued_at: datetime
    last_read_at: datetime | None
    vt: datetime
    message: Any
    headers: dict[str, Any] | None

    def __repr__(self) -> str:
        moment = self.enqueued_at.isoformat()
        return f"Message(msg_id={self.msg_id}, read_ct={self.read_ct}, enqueued_at={moment}, message={self.message!r})"


@dataclass
class QueueRecord:
    """A queue, as a row of ``pgmq.queue_record``. As text it is its name."""

    queue_name: str
    is_partitioned: bool
    is_unlogged: bool
    created_at: datetime

    def __str__(self) -> str:
        return self.queue_name


@dataclass
class QueueMetrics:
    """Counts of a queue, as a row of ``pgmq.metrics_result``."""

    queue_name: str
    queue_length: int
    newest_msg_age_sec: int | None
    oldest_msg_age_sec: int | None
    total_messages: int
    scrape_time: datetime
    queue_visible_length: int


@dataclass
class TopicBinding:
    """A pattern that is bound to a queue."""

    pattern: str
    queue_name: str
    bound_at: datetime
    compiled_regex: str


@dataclass
class RoutingResult:
    """A binding that matches a routing key."""

    pattern: str
    queue_name: str
    compiled_regex: str


@dataclass
class BatchTopicResult:
    """One copy of a message that was sent by a routing key."""

    queue_name: str
    msg_id: int


@dataclass
class NotificationThrottle:
    """A queue that notifies about inserts. 1970 stands for a queue that never has."""

    queue_name: str
    throttle_interval_ms: int
    last_notified_at: datetime
