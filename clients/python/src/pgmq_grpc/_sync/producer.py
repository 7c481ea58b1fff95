# Made of _async/producer.py by make_sync.py: change it there.
"""Produce: the sends of many callers over one stream."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import grpc

from pgmq_grpc._errors import PgmqError
from pgmq_grpc._options import backoff
from pgmq_grpc._requests import described, outgoing, refuse_too_large
from pgmq_grpc._sync import io
from pgmq_grpc._sync.link import Link
from pgmq_grpc._types import SendResult
from pgmq_grpc.v1 import message_pb2
from pgmq_grpc.v1 import queue_service_pb2 as contract

if TYPE_CHECKING:
    from pgmq_grpc._convert import Span
    from pgmq_grpc._session import Session
    from pgmq_grpc._sync.client import Client

# A frame has at most 1,000 messages of 1 MiB together.
FRAME_MESSAGES = 1000
_FRAME_BYTES = 1_000_000
_ATTEMPTS = 4


@dataclass(eq=False)
class Sending:
    """One message, and who waits for its id."""

    message: message_pb2.OutgoingMessage
    waiter: io.Future[SendResult]
    since: float = field(default_factory=time.monotonic)
    attempts: int = 0
    has_left: bool = False
    may_be_stored: bool = False


class SendStream(Link):
    """Carries messages in frames, and takes the answer to each."""

    def __init__(self, client: Client, queue: str, subject: str) -> None:
        super().__init__(client, subject)
        self._queue = queue
        self._waiting: io.Mailbox[Sending] = io.Mailbox()
        self._unanswered: dict[int, list[Sending]] = {}
        self._next_sequence = 1

    def _frames(self, session: Session) -> Iterator[contract.ProduceRequest]:
        """Give what goes over the stream."""
        raise NotImplementedError

    def _refused(self, refused: Sequence[tuple[Sending, PgmqError]]) -> None:
        """Take the messages of a frame that were not stored."""
        raise NotImplementedError

    def _done(self) -> None:
        """Note that nothing more will come of a message."""

    def _fail(self, sending: Sending, error: Exception) -> None:
        self._done()
        if sending.may_be_stored:
            error = copy(error) if isinstance(error, PgmqError) else PgmqError(grpc.StatusCode.UNKNOWN, str(error))
            error.outcome_unknown = True
        if not sending.waiter.done():
            sending.waiter.set_exception(error)

    def _wake(self) -> None:
        super()._wake()
        self._waiting.wake()

    def _open(self, session: Session) -> Any:
        return self._client.raw.queue.Produce(self._frames(session), metadata=self._client.metadata())

    def _written(self, session: Session, sendings: list[Sending]) -> list[contract.ProduceRequest]:
        """Write messages into frames, but for those whose results nobody wants any more."""
        with self._lock:
            if session.ended or session.closing:
                self._waiting.put_back(sendings)
                return []
            for sending in sendings:
                sending.has_left = io.claim(sending.waiter)
            frames = []
            for part in _parts([sending for sending in sendings if sending.has_left]):
                self._unanswered[self._next_sequence] = part
                messages = [sending.message for sending in part]
                frames.append(
                    contract.ProduceRequest(queue=self._queue, first_sequence=self._next_sequence, messages=messages)
                )
                self._next_sequence += len(part)
        for sending in sendings:
            if not sending.has_left:
                self._done()
        return frames

    def _receive(self, session: Session, response: contract.ProduceResponse) -> None:
        if not response.msg_ids:
            return
        with self._lock:
            sendings = self._unanswered.pop(response.first_sequence, [])
        failures = {failure.index: failure.error for failure in response.failures}
        known = frozenset(response.deduplicated)
        refused = []
        for index, (sending, msg_id) in enumerate(zip(sendings, response.msg_ids, strict=True)):
            if index in failures:
                refused.append((sending, PgmqError.from_command(failures[index])))
                continue
            self._done()
            if not sending.waiter.done():
                sending.waiter.set_result(SendResult(msg_id, index in known))
        if refused:
            self._refused(refused)
        if self._closing:
            self._wake()

    def _lost(self, session: Session, failure: Exception | None) -> None:
        with self._lock:
            sendings = [sending for frame in self._unanswered.values() for sending in frame]
            self._unanswered.clear()
        # Frames that the server had not read when it announced the end were not applied.
        unapplied = session.closing
        if isinstance(failure, PgmqError):
            unapplied = not failure.outcome_unknown and failure.is_temporary
        self._unheard(sendings, None if unapplied else failure or _no_answer())

    def _unheard(self, sendings: Sequence[Sending], failure: Exception | None) -> None:
        """Take messages that will get no answer: they may have been stored, unless there is no failure."""
        raise NotImplementedError


class Producer(SendStream):
    """Sends to one queue, for many callers at once, over a stream that survives restarts.

        with client.queue("orders").producer() as producer:
            [producer.send({"order": number}) for number in range(1000)]

    Each message has its own id or error. At most `max_outstanding` wait for theirs; then `send` waits. When the stream
    breaks, messages with a deduplication id are sent again, and so are those that certainly were not stored; the others
    fail, with `outcome_unknown`. Leaving the `with` block waits for what is under way.
    """

    def __init__(self, client: Client, queue: str, *, idempotent: bool, max_outstanding: int) -> None:
        super().__init__(client, queue, f"producer of {queue!r}")
        if max_outstanding < 1:
            raise ValueError(f"max_outstanding is {max_outstanding}: it has to be at least 1")
        self._idempotent = idempotent
        self._places = io.Semaphore(max_outstanding)
        self._repeating = 0

    def send(
        self,
        message: object,
        *,
        headers: object = None,
        delay: Span | None = None,
        visible_at: datetime | None = None,
        group: str | None = None,
        deduplication_id: str | None = None,
    ) -> SendResult:
        """Send a message, and wait until it is stored, at most for the client's timeout."""
        given = described(message, headers, delay, visible_at, group, deduplication_id)
        deadline = time.monotonic() + self._client.timeout
        sending = self._offer(given, self._client.timeout)
        try:
            return io.outcome(sending.waiter, max(deadline - time.monotonic(), 0.001))
        except io.TimedOut:
            with self._lock:
                text, unknown = "there was no answer in time", sending.has_left or sending.may_be_stored
                raise PgmqError(grpc.StatusCode.DEADLINE_EXCEEDED, text, outcome_unknown=unknown) from None

    def submit(self, message: object) -> io.Future[SendResult]:
        """Send a message, a value or an OutgoingMessage, and give the future of its result.

        It waits only while too many are outstanding, and has no deadline, nor has the future.
        """
        return (self._offer(message, None)).waiter

    def _offer(self, message: object, timeout: float | None) -> Sending:
        written = outgoing(message_pb2.OutgoingMessage(), message, self._client.json, idempotent=self._idempotent)
        refuse_too_large(written)
        self._refuse_elsewhere()
        if not self._tasks:
            self._client.streams()
        if not io.acquire(self._places, timeout):
            text = "too many messages were outstanding for too long"
            raise PgmqError(grpc.StatusCode.DEADLINE_EXCEEDED, text, outcome_unknown=False)
        waiter: io.Future[SendResult] = io.future()
        with self._lock:
            if self._closing:
                self._places.release()
                # Which tells if the client is closed, too.
                self._client.streams()
                raise RuntimeError("the producer is closed")
            self._start()
            sending = Sending(written, waiter)
            self._waiting.put(sending)
        return sending

    def _done(self) -> None:
        self._places.release()

    def _is_wanted(self) -> bool:
        return not self._closing or bool(self._waiting or self._unanswered or self._repeating)

    def _frames(self, session: Session) -> Iterator[contract.ProduceRequest]:
        def is_due() -> bool:
            return session.is_over or session.closing or (self._closing and not self._repeating)

        while not session.is_over and not session.closing:
            sendings = self._waiting.take(FRAME_MESSAGES, None, is_due)
            for frame in self._written(session, sendings):
                yield frame
            if not sendings and self._closing and not self._repeating:
                return

    def _refused(self, refused: Sequence[tuple[Sending, PgmqError]]) -> None:
        """Send again what the server says may be sent again, after a pause, and tell of the rest."""
        again = []
        pause = 0.0
        for sending, error in refused:
            sending.attempts += 1
            sending.may_be_stored = sending.may_be_stored or error.outcome_unknown
            if error.may_repeat and sending.attempts < _ATTEMPTS:
                sending.has_left = False
                again.append(sending)
                pause = max(pause, backoff(sending.attempts, error))
            else:
                self._fail(sending, error)
        if again:
            with self._lock:
                self._repeating += 1
            io.Task(self._again, again, pause)

    def _again(self, sendings: list[Sending], pause: float) -> None:
        io.pause(pause)
        with self._lock:
            self._waiting.put_back(sendings)
            self._repeating -= 1

    def _unheard(self, sendings: Sequence[Sending], failure: Exception | None) -> None:
        for sending in sendings:
            sending.has_left = False
            sending.may_be_stored = sending.may_be_stored or failure is not None
        again = [sending for sending in sendings if failure is None or sending.message.deduplication_id]
        self._waiting.put_back(again)
        for sending in sendings:
            if failure is not None and not sending.message.deduplication_id:
                self._fail(sending, failure)

    def _give_up(self, failure: Exception) -> bool:
        # Nobody is to wait for a stream that the server refuses. The next send tries again.
        for sending in self._waiting.drain():
            self._fail(sending, failure)
        return False

    def _between(self, seconds: float, failure: Exception | None) -> None:
        if failure is not None:
            oldest = time.monotonic() - self._client.timeout
            sendings = self._waiting.drain()
            for sending in sendings:
                if sending.since < oldest:
                    self._fail(sending, failure)
            self._waiting.put_back([sending for sending in sendings if sending.since >= oldest])
        super()._between(seconds, failure)


def _no_answer() -> PgmqError:
    return PgmqError(grpc.StatusCode.UNAVAILABLE, "the stream ended without an answer")


def _parts(sendings: list[Sending]) -> list[list[Sending]]:
    """Cut messages into frames that are not too large."""
    parts: list[list[Sending]] = []
    room = 0
    for sending in sendings:
        size = sending.message.ByteSize()
        if not parts or size > room:
            parts.append([])
            room = _FRAME_BYTES
        parts[-1].append(sending)
        room -= size
    return parts
