"""The interface of tembo-pgmq-python 0.10, over gRPC.

    from pgmq_grpc.compat.tembo import Message, PGMQueue

    queue = PGMQueue("127.0.0.1:50051")
    message: Message = queue.pop("my_queue")

Modules have their names too: ``async_queue``, ``decorators``, ``messages`` and ``queue``. New programs are better off
with `pgmq_grpc` itself.
"""

from .decorators import async_transaction, transaction
from .messages import Message
from .queue import PGMQueue

__all__ = ["Message", "PGMQueue", "async_transaction", "transaction"]
