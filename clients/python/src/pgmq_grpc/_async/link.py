"""Streams that are opened again whenever they end, until they are told to."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Generic, TypeGuard, TypeVar

import grpc

from pgmq_grpc._async import io
from pgmq_grpc._convert import limit
from pgmq_grpc._errors import PgmqError
from pgmq_grpc._options import backoff
from pgmq_grpc._session import Session, Streams

if TYPE_CHECKING:
    from typing_extensions import Self

    from pgmq_grpc._async.client import AsyncClient
    from pgmq_grpc._convert import Span

T = TypeVar("T")

logger = logging.getLogger("pgmq_grpc")


class AsyncLink:
    """What consumers, producers and watchers share: they say what goes over the stream, and this keeps it there."""

    def __init__(self, client: AsyncClient, subject: str) -> None:
        self._client = client
        self._subject = subject
        self._lock = io.Lock()
        self._session = Session()
        self._streams = Streams()
        self._tasks: list[io.Task] = []
        self._stopping = False
        self._closing = False
        self._finished = False
        self._trouble: Exception | None = None
        self._pauses: io.Mailbox[None] = io.Mailbox()
        self._process = os.getpid()

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the stream, once what is under way has its results."""
        if self._is_elsewhere():
            return
        with self._lock:
            self._stopping = self._closing = True
        self._wake()
        for task in self._tasks:
            stuck = self._session.abandoned and not self._session.can_be_cancelled
            if not await task.join(0 if stuck else self._client.timeout) and not stuck:
                self._session.abandon()
                await task.join()
        self._streams.links.discard(self)

    async def rest(self, seconds: float) -> None:
        """End the stream that is there, with answers to what is under way, and wait for that. Another one follows."""
        session = self._session
        if session.call is None:
            return
        session.leave()
        self._wake()
        for _ in range(2):
            await self._pauses.take(1, seconds, lambda: session.ended)
            if not session.ended:
                session.abandon()

    def _is_elsewhere(self) -> bool:
        """Tell whether this is a fork of the process that has the stream. No lock is to be trusted there."""
        return self._process != os.getpid()

    def _refuse_elsewhere(self) -> None:
        if self._is_elsewhere():
            raise RuntimeError(f"the {self._subject} belongs to the process that made it, and this is another one")

    def _start(self) -> None:
        self._refuse_elsewhere()
        if self._tasks:
            return
        with self._lock:
            if not self._tasks and not self._stopping:
                self._streams = self._client.streams()
                self._streams.links.add(self)
                if self._streams.closing:
                    # By another thread, which may not have seen this link.
                    self._streams.links.discard(self)
                    raise RuntimeError("the client is closed")
                self._tasks = [io.Task(self._run), io.Task(self._attend)]

    def _wake(self) -> None:
        self._pauses.wake()

    def _open(self, session: Session) -> Any:
        """Open the stream."""
        raise NotImplementedError

    def _receive(self, session: Session, response: Any) -> None:
        """Take what a response brings, beside the notices of the stream."""
        raise NotImplementedError

    def _lost(self, session: Session, failure: Exception | None) -> None:
        """Take back what this stream will not answer any more."""

    def _is_wanted(self) -> bool:
        """Tell whether there is to be another stream."""
        return not self._stopping

    def _give_up(self, failure: Exception) -> bool:
        """Take a failure that no repetition cures, and tell whether it is the end."""
        raise NotImplementedError

    async def _between(self, seconds: float, failure: Exception | None) -> None:
        """Wait between two streams."""
        await self._pauses.take(1, seconds, lambda: not self._is_wanted())

    async def _finish(self) -> None:
        """Do what is to be done without a stream, until the end."""

    async def _run(self) -> None:
        failures = 0
        try:
            while self._is_wanted():
                session = Session()
                self._trouble = failure = await self._serve(session)
                if _is_lasting(failure) and self._give_up(failure):
                    break
                failures = 1 if session.started else failures + 1
                pause = session.delay_left() if session.closing else backoff(failures, failure, longest=10)
                if failure is not None and self._is_wanted():
                    logger.warning("%s: the stream broke, open again in %.1f s: %s", self._subject, pause, failure)
                await self._between(pause, failure)
            await self._finish()
        except Exception as error:
            # Whoever waits is to hear of it.
            self._give_up(PgmqError(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}"))
            raise
        finally:
            with self._lock:
                self._finished = True
            self._wake()

    async def _serve(self, session: Session) -> Exception | None:
        """Open a stream and take what it brings, until it ends. Returns why, unless that was planned."""
        failure: Exception | None = None
        try:
            session.call = self._open(session)
            self._session = session
            # Whoever has closed this meanwhile has not seen the stream.
            self._wake()
            response: Any
            async for response in io.responses(session.call):
                session.hear(response)
                self._receive(session, response)
                if session.closing or response.HasField("started"):
                    self._wake()
        except io.Cancelled:
            if not session.abandoned:
                raise
            failure = PgmqError(grpc.StatusCode.UNAVAILABLE, "the server was silent for too long")
        except grpc.RpcError as error:
            failure = PgmqError.from_rpc(error)
        except Exception as error:  # noqa: BLE001
            # Such as one of the application's own function for metadata.
            failure = error
        finally:
            with self._lock:
                session.ended = True
            self._wake()
            self._lost(session, failure)
        return failure

    async def _attend(self) -> None:
        """Leave a stream on which the server is silent for too long."""
        while not self._finished:
            await self._listen(self._session, self._session.interval)

    async def _listen(self, session: Session, interval: float) -> None:
        await self._pauses.take(1, interval, lambda: self._finished or self._session.interval != interval)
        if session.is_silent and not session.ended:
            session.abandon()


class AsyncSubscription(AsyncLink, Generic[T]):
    """A stream of things to be taken one by one, in a loop or by `receive`."""

    def __init__(self, client: AsyncClient, subject: str) -> None:
        super().__init__(client, subject)
        self._items: io.Mailbox[T] = io.Mailbox()
        self._failure: Exception | None = None
        self._managed = False

    async def __aenter__(self) -> Self:
        self._managed = True
        return await super().__aenter__()

    async def __aiter__(self) -> AsyncIterator[T]:
        """Give what comes, until `stop`. Without an `async with` block, leaving the loop ends the stream too."""
        try:
            while (item := await self.receive()) is not None:
                yield item
        finally:
            if not self._managed:
                await self.close()

    async def receive(self, timeout: Span | None = None) -> T | None:
        """Give the next one, or None when the time is up or `stop` was called."""
        self._start()
        patience = None if timeout is None else limit(timeout)
        for item in await self._items.take(1, patience, lambda: self._stopping):
            return item
        if self._failure is not None:
            raise self._failure
        return None

    async def close(self) -> None:
        """Stop, and end the stream once what is under way has its results."""
        if self._is_elsewhere():
            return
        self.stop()
        await super().close()

    def stop(self) -> None:
        """Take no more: loops end. It does not wait, and may be called from anywhere, such as a handler of signals."""
        if self._is_elsewhere():
            return
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        super()._wake()
        self._items.wake()

    def _give_up(self, failure: Exception) -> bool:
        if not isinstance(failure, PgmqError):
            # Of the application's own function for metadata, which may work the next time.
            return False
        self._failure = failure
        self._stopping = True
        return True


def _is_lasting(failure: Exception | None) -> TypeGuard[Exception]:
    return failure is not None and not (isinstance(failure, PgmqError) and failure.is_temporary)
