# Made of _async/watcher.py by make_sync.py: change it there.
"""Watch: what happens to queues, as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from pgmq_grpc._convert import request, result
from pgmq_grpc._errors import PgmqError
from pgmq_grpc._sync import io
from pgmq_grpc._sync.link import Subscription
from pgmq_grpc._types import QueueEvent
from pgmq_grpc.v1 import queue_service_pb2 as contract

if TYPE_CHECKING:
    from typing_extensions import Self

    from pgmq_grpc._convert import Span
    from pgmq_grpc._session import Session
    from pgmq_grpc._sync.client import Client


class Watcher(Subscription[QueueEvent]):
    """Events of queues, over a stream that survives restarts. What happens while there is none is not told.

        with client.watch(["orders"]) as events:
            for event in events:
                print(event.queue, event.kind)

    The `with` block begins when the server has confirmed that it watches, and fails if it does not in time.
    """

    def __init__(self, client: Client, queues: list[str], heartbeat_interval: Span | None) -> None:
        super().__init__(client, f"watcher of {', '.join(map(repr, queues))}")
        self._request = request(contract.WatchRequest, queues=queues, heartbeat_interval=heartbeat_interval)
        self._confirmed: io.Mailbox[None] = io.Mailbox()

    def __enter__(self) -> Self:
        super().__enter__()
        is_there = self._confirmed.take(1, self._client.timeout, lambda: self._stopping)
        failure = self._failure
        if not is_there and not self._stopping:
            text = "the server has not confirmed in time that it watches"
            failure = self._trouble or PgmqError(grpc.StatusCode.DEADLINE_EXCEEDED, text)
        if failure is not None:
            self.close()
            raise failure
        return self

    def _open(self, session: Session) -> Any:
        return self._client.raw.queue.Watch(self._request, metadata=self._client.metadata())

    def _receive(self, session: Session, response: contract.WatchResponse) -> None:
        if response.HasField("started"):
            self._confirmed.put(None)
        for event in response.events:
            self._items.put(result(QueueEvent, event))

    def _wake(self) -> None:
        super()._wake()
        self._confirmed.wake()
        if self._closing or self._session.is_over:
            self._session.abandon()

    def _lost(self, session: Session, failure: Exception | None) -> None:
        """Nothing is under way on a watch."""
