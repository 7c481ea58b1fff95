"""The values that calls take and give. Their fields have the contract's names, and its comments explain them.

Enumerations are the contract's words without their prefix, as literals: `ordering="GROUPED_HEAD"`, `outcome == "DONE"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from pgmq_grpc._convert import Span, mirrors

if TYPE_CHECKING:
    from pgmq_grpc._errors import PgmqError

Outcome = Literal["DONE", "NOT_FOUND", "STALE"]
"""What became of one message: done; gone already, which counts as done; or in the hands of a newer reader."""
Ordering = Literal["UNORDERED", "GROUPED", "GROUPED_ROUND_ROBIN", "GROUPED_HEAD"]
QueueKind = Literal["STANDARD", "UNLOGGED", "PARTITIONED"]
QueueLayout = Literal["TUNED", "PGMQ"]
MessageState = Literal["VISIBLE", "IN_FLIGHT", "DELAYED"]
QueueEventKind = Literal["SENT", "VISIBLE"]
ClientRole = Literal["PRODUCER", "CONSUMER"]
SettleAction = Literal["DELETE", "ARCHIVE", "RELEASE", "DEAD_LETTER"]


@dataclass(frozen=True)
class OutgoingMessage:
    """One message of a batch, with all that can be said of it.

    `message` and `headers` are values, or JsonText. `delay` and `visible_at` exclude each other.
    """

    message: object
    headers: object = None
    delay: Span | None = None
    visible_at: datetime | None = None
    group: str | None = None
    deduplication_id: str | None = None


@dataclass(frozen=True)
class Partitioning:
    """How a PARTITIONED queue is cut, and how long its parts are kept."""

    interval: str = ""
    retention: str = ""
    premake: int = 0


@mirrors("DeadLetterPolicy")
@dataclass(frozen=True)
class DeadLetterPolicy:
    """Where messages go that were handed over `max_receives` times and never settled."""

    queue: str
    max_receives: int


@mirrors("RetryBackoff")
@dataclass(frozen=True)
class RetryBackoff:
    """How long a released message is hidden, by how often it has been read."""

    minimum: Span
    maximum: Span
    multiplier: float = 2
    jitter: float = 0


@mirrors("QueuePolicy")
@dataclass(frozen=True)
class QueuePolicy:
    """What holds in a queue where a call leaves it open. None leaves it to the server."""

    default_visibility_timeout: Span | None = None
    default_delay: Span | None = None
    default_wait: Span | None = None
    max_message_bytes: int | None = None
    dead_letter: DeadLetterPolicy | None = None
    retry_backoff: RetryBackoff | None = None
    deduplication_window: Span | None = None
    default_ordering: Ordering | None = None
    archive_retention: Span | None = None


@mirrors("Queue")
@dataclass(frozen=True)
class QueueInfo:
    """A queue, as the server describes it."""

    id: int
    name: str
    kind: QueueKind
    created_at: datetime
    layout: QueueLayout | None
    policy: QueuePolicy | None


@mirrors("CreateQueueResponse")
@dataclass(frozen=True)
class CreatedQueue:
    """The queue as it is now, and whether this call created it."""

    queue: QueueInfo
    created: bool


@mirrors("QueueMetrics")
@dataclass(frozen=True)
class QueueMetrics:
    """The messages of a queue, counted. Only `list_queue_metrics` sets `error`, for a queue that cannot be measured."""

    queue: str
    queue_length: int
    visible_length: int
    in_flight_length: int
    delayed_length: int
    newest_message_age: timedelta | None
    oldest_message_age: timedelta | None
    oldest_visible_message_age: timedelta | None
    total_messages: int
    default_partition_length: int | None
    archive_length: int | None
    dead_lettered_count: int
    redriven_count: int
    replayed_count: int
    scraped_at: datetime | None
    error: PgmqError | None


@mirrors("SendResult")
@dataclass(frozen=True)
class SendResult:
    """The id that a message got, and whether it is that of an earlier message with the same deduplication id."""

    msg_id: int
    deduplicated: bool


@mirrors("TopicCopy")
@dataclass(frozen=True)
class TopicCopy:
    """One copy of a message in one queue; `message_index` says of which message of the batch."""

    queue: str
    msg_id: int
    message_index: int
    deduplicated: bool


@mirrors("SendTopicResponse")
@dataclass(frozen=True)
class TopicResult:
    """The copies of a message, one for each queue that matched."""

    copies: list[TopicCopy]
    deduplicated: bool


@mirrors("TopicBinding")
@dataclass(frozen=True)
class TopicBinding:
    """A pattern and the queue that gets what matches it."""

    pattern: str
    queue: str
    bound_at: datetime
    compiled_regex: str


@mirrors("DeleteArchivedMessagesResponse")
@dataclass(frozen=True)
class ArchiveDeletion:
    """How many archived messages were deleted, and whether to call again for more."""

    deleted_count: int
    more: bool


@mirrors("ReplayArchivedMessagesResponse")
@dataclass(frozen=True)
class Replay:
    """How many archived messages were sent again, and whether to call again for more."""

    replayed_count: int
    more: bool


@mirrors("RedriveMessagesResponse")
@dataclass(frozen=True)
class Redrive:
    """How many dead letters were moved, and whether to call again for more."""

    moved_count: int
    more: bool


@mirrors("NotificationSettings")
@dataclass(frozen=True)
class NotificationSettings:
    """How a queue notifies plain SQL listeners of inserts."""

    queue: str
    throttle_interval: timedelta
    last_notified_at: datetime | None


@mirrors("Client")
@dataclass(frozen=True)
class ClientInfo:
    """Somebody who sent or consumed within the last minute."""

    name: str
    role: ClientRole
    queue: str
    address: str
    replica: str
    in_flight: int
    since: datetime
    last_seen: datetime


@mirrors("QueueEvent")
@dataclass(frozen=True)
class QueueEvent:
    """Something happened to a queue: a hint to look."""

    queue: str
    kind: QueueEventKind
    at: datetime


@mirrors("InstallPgmqResponse")
@dataclass(frozen=True)
class Installation:
    """The versions of pgmq before and after; the first is empty where there was none."""

    previous_version: str
    pgmq_version: str


@mirrors("ServerState")
@dataclass(frozen=True)
class ServerState:
    """What one replica of the server has to do at this moment."""

    uptime: timedelta
    waiting_sends: int
    waiting_send_bytes: int
    waiting_settles: int
    lanes: int
    refusing_lanes: int
    merged_calls: int
    merged_calls_refused: bool
    dispatchers: int
    read_streams: int
    consume_streams: int
    produce_streams: int
    watch_streams: int
    open_transactions: int
    max_database_connections: int
    open_database_connections: int
    used_database_connections: int
    calls_waiting_for_database: int


@mirrors("GetServerInfoResponse")
@dataclass(frozen=True)
class ServerInfo:
    """Versions, and what works with them."""

    server_version: str
    replica: str
    pgmq_version: str
    pgmq_installed_by: str
    postgres_version: str
    capabilities: list[str]
    state: ServerState
