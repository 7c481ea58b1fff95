"""Drop-in for pgmq-py 1.1.4: its classes, functions and dataclasses, over gRPC.

    from pgmq_grpc.pgmqueue import PGMQueue

    queue = PGMQueue("127.0.0.1:50051")
    queue.create_queue("my_queue")
    msg_id = queue.send("my_queue", {"hello": "world"})
    message = queue.read("my_queue", vt=30)

A program moves by changing its imports, ``pgmq`` to ``pgmq_grpc.pgmqueue`` also for modules of it such as
``pgmq.decorators``, and the address. Errors are this package's own, `pgmq_grpc.PgmqError`, in place of those of psycopg
and asyncpg. What needs SQL is not here: the classes for SQLAlchemy, and the installation of pgmq, which the server
does.
"""

from .async_queue import AsyncPGMQueue
from .decorators import async_transaction, transaction
from .logger import LoggingManager, PGMQLogger, create_logger, log_performance
from .messages import (
    BatchTopicResult,
    Message,
    NotificationThrottle,
    QueueMetrics,
    QueueRecord,
    RoutingResult,
    TopicBinding,
)
from .notify_listener import AsyncNotificationListener, SyncNotificationListener
from .queue import PGMQueue

SyncPGMQueue = PGMQueue

__all__ = [
    "AsyncNotificationListener",
    "AsyncPGMQueue",
    "BatchTopicResult",
    "LoggingManager",
    "Message",
    "NotificationThrottle",
    "PGMQLogger",
    "PGMQueue",
    "QueueMetrics",
    "QueueRecord",
    "RoutingResult",
    "SyncNotificationListener",
    "SyncPGMQueue",
    "TopicBinding",
    "async_transaction",
    "create_logger",
    "log_performance",
    "transaction",
]
