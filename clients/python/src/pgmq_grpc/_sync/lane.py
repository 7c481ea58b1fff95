# Made of _async/lane.py by make_sync.py: change it there.
"""The sends of a client: alone as calls, and at the same time over streams that they share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from pgmq_grpc._errors import PgmqError
from pgmq_grpc._sync import io
from pgmq_grpc._sync.producer import FRAME_MESSAGES, Sending, SendStream
from pgmq_grpc._types import SendResult
from pgmq_grpc.v1 import queue_service_pb2 as contract

if TYPE_CHECKING:
    from pgmq_grpc._session import Session, Streams
    from pgmq_grpc._sync.client import Client
    from pgmq_grpc.v1.message_pb2 import OutgoingMessage

_IDLE_SECONDS = 10.0
_MOST_LANES = 16
# Larger messages gain nothing from a stream, hold up those behind them, and can be its end.
_MOST_BYTES = 1 << 20
# For so long after a stream has failed, calls go by themselves.
_REST_SECONDS = 1.0


def send(client: Client, queue: str, message: OutgoingMessage) -> SendResult:
    """Send a message: by a call of its own, or over a stream while the client has other sends under way.

    Both ways have the same errors, and are repeated alike.
    """
    streams = client.streams()
    attempt: Any = partial(_send, client, streams, queue)
    streams.sends.append(None)
    try:
        result: SendResult = client.call(attempt, message, repeat=bool(message.deduplication_id))
    finally:
        streams.sends.pop()
    return result


def _send(
    client: Client, streams: Streams, queue: str, message: OutgoingMessage, *, timeout: float, metadata: Any
) -> SendResult:
    deadline = time.monotonic() + timeout
    lost = False
    shares = len(streams.sends) > 1 and message.ByteSize() <= _MOST_BYTES
    if shares and (lane := _lane(client, streams, queue)) is not None:
        try:
            return lane.carry(message, timeout)
        except Unheard as unheard:
            if unheard.failure is not None and not message.deduplication_id:
                raise unheard.failure from None
            lost = unheard.failure is not None
    asked = contract.SendRequest(queue=queue, **{field.name: value for field, value in message.ListFields()})
    left = max(deadline - time.monotonic(), 0.001)
    # What was sent once, and may be sent again, waits for a server that is starting again.
    try:
        reply = client.raw.queue.Send(asked, timeout=left, metadata=metadata, wait_for_ready=lost)
    except grpc.RpcError as error:
        failure = PgmqError.from_rpc(error)
        failure.outcome_unknown = failure.outcome_unknown or lost
        raise failure from error
    return SendResult(reply.msg_id, reply.deduplicated)


def _lane(client: Client, streams: Streams, queue: str) -> Lane | None:
    """Give the stream of a queue's sends, unless there are too many streams, or the last one has failed just now."""
    lane: Lane | None = streams.lanes.get(queue)
    if lane is None and len(streams.lanes) < _MOST_LANES and time.monotonic() >= streams.no_lanes_until:
        lane = streams.lanes.setdefault(queue, Lane(client, queue, streams))
    return lane


class Unheard(Exception):  # noqa: N818
    """A lane will have no answer for a message: after this failure, or, without one, because it was not stored."""

    def __init__(self, failure: PgmqError | None = None) -> None:
        super().__init__(failure)
        self.failure = failure


class Lane(SendStream):
    """One stream for sends to one queue. It is there until it fails, or nobody has sent for a while."""

    def __init__(self, client: Client, queue: str, streams: Streams) -> None:
        super().__init__(client, queue, f"sends to {queue!r}")
        self._streams = streams
        self._has_ended = False

    def carry(self, message: OutgoingMessage, timeout: float) -> SendResult:
        """Send a message once. Raises `Unheard` if it is not known what has become of it, or if it did not leave."""
        sending = Sending(message, io.future())
        with self._lock:
            if self._closing:
                raise Unheard
            self._waiting.put(sending)
            self._start()
        try:
            return io.outcome(sending.waiter, timeout)
        except io.TimedOut:
            with self._lock:
                text = "there was no answer in time"
                raise PgmqError(grpc.StatusCode.DEADLINE_EXCEEDED, text, outcome_unknown=sending.has_left) from None

    def _is_wanted(self) -> bool:
        return not self._has_ended

    def _frames(self, session: Session) -> Iterator[contract.ProduceRequest]:
        def is_due() -> bool:
            return session.is_over or session.closing or self._closing

        # What has not left can still go by a call, if there is to be no stream.
        self._pauses.take(1, None, lambda: session.started or session.is_over)
        while not session.is_over and not session.closing:
            sendings = self._waiting.take(FRAME_MESSAGES, _IDLE_SECONDS, is_due)
            for frame in self._written(session, sendings):
                yield frame
            if not sendings and (self._closing or not self._unanswered):
                break
        self._retire()

    def _retire(self) -> None:
        """Take no more, and leave to calls what has not left."""
        with self._lock:
            self._stopping = self._closing = True
            waiting = self._waiting.drain()
        if self._streams.lanes.get(self._queue) is self:
            del self._streams.lanes[self._queue]
        self._unheard(waiting, None)

    def _refused(self, refused: Sequence[tuple[Sending, PgmqError]]) -> None:
        for sending, error in refused:
            self._fail(sending, error)

    def _unheard(self, sendings: Sequence[Sending], failure: Exception | None) -> None:
        if failure is not None and not isinstance(failure, PgmqError):
            failure = PgmqError(grpc.StatusCode.UNKNOWN, str(failure))
        for sending in sendings:
            # Each of its own: it is raised by each.
            self._fail(sending, Unheard(copy(failure)))

    def _lost(self, session: Session, failure: Exception | None) -> None:
        self._has_ended = True
        if failure is not None or session.closing:
            self._streams.no_lanes_until = time.monotonic() + max(session.delay_left(), _REST_SECONDS)
        self._retire()
        super()._lost(session, failure)

    def _give_up(self, failure: Exception) -> bool:
        return True

    def _finish(self) -> None:
        self._streams.links.discard(self)
