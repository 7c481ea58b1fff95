"""Client of pgmq-grpc: message queues in Postgres, over gRPC.

`Client` is for threads and `AsyncClient` for asyncio; both have the same words.
"""

import logging as _logging
from importlib.metadata import version as _version

from pgmq_grpc._async.client import AsyncClient
from pgmq_grpc._async.consumer import AsyncConsumer
from pgmq_grpc._async.message import AsyncMessage
from pgmq_grpc._async.producer import AsyncProducer
from pgmq_grpc._async.queue import AsyncArchivedMessage, AsyncQueue
from pgmq_grpc._async.transaction import AsyncTransaction
from pgmq_grpc._async.watcher import AsyncWatcher
from pgmq_grpc._convert import Span
from pgmq_grpc._errors import PgmqError
from pgmq_grpc._json import ExactJson, JsonLibrary, JsonText
from pgmq_grpc._options import Tls
from pgmq_grpc._sync.client import Client
from pgmq_grpc._sync.consumer import Consumer
from pgmq_grpc._sync.message import Message
from pgmq_grpc._sync.producer import Producer
from pgmq_grpc._sync.queue import ArchivedMessage, Queue
from pgmq_grpc._sync.transaction import Transaction
from pgmq_grpc._sync.watcher import Watcher
from pgmq_grpc._types import (
    ArchiveDeletion,
    ClientInfo,
    ClientRole,
    CreatedQueue,
    DeadLetterPolicy,
    Installation,
    MessageState,
    NotificationSettings,
    Ordering,
    Outcome,
    OutgoingMessage,
    Partitioning,
    QueueEvent,
    QueueEventKind,
    QueueInfo,
    QueueKind,
    QueueLayout,
    QueueMetrics,
    QueuePolicy,
    Redrive,
    Replay,
    RetryBackoff,
    SendResult,
    ServerInfo,
    ServerState,
    SettleAction,
    TopicBinding,
    TopicCopy,
    TopicResult,
)
from pgmq_grpc.pgmqueue import AsyncPGMQueue, PGMQueue

__version__ = _version("pgmq-grpc")

# Silent unless the application says where to log.
_logging.getLogger("pgmq_grpc").addHandler(_logging.NullHandler())

__all__ = [
    "ArchiveDeletion",
    "ArchivedMessage",
    "AsyncArchivedMessage",
    "AsyncClient",
    "AsyncConsumer",
    "AsyncMessage",
    "AsyncPGMQueue",
    "AsyncProducer",
    "AsyncQueue",
    "AsyncTransaction",
    "AsyncWatcher",
    "Client",
    "ClientInfo",
    "ClientRole",
    "Consumer",
    "CreatedQueue",
    "DeadLetterPolicy",
    "ExactJson",
    "Installation",
    "JsonLibrary",
    "JsonText",
    "Message",
    "MessageState",
    "NotificationSettings",
    "Ordering",
    "Outcome",
    "OutgoingMessage",
    "PGMQueue",
    "Partitioning",
    "PgmqError",
    "Producer",
    "Queue",
    "QueueEvent",
    "QueueEventKind",
    "QueueInfo",
    "QueueKind",
    "QueueLayout",
    "QueueMetrics",
    "QueuePolicy",
    "Redrive",
    "Replay",
    "RetryBackoff",
    "SendResult",
    "ServerInfo",
    "ServerState",
    "SettleAction",
    "Span",
    "Tls",
    "TopicBinding",
    "TopicCopy",
    "TopicResult",
    "Transaction",
    "Watcher",
]
