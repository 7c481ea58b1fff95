"""Consume: the messages of a queue as a stream, settled over the same stream."""

from __future__ import annotations

import logging
import random
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import grpc

from pgmq_grpc._async import io
from pgmq_grpc._async.link import AsyncSubscription
from pgmq_grpc._async.message import AsyncMessage
from pgmq_grpc._convert import duration, limit, seconds
from pgmq_grpc._errors import UNDONE_IN_PART, PgmqError
from pgmq_grpc._options import backoff
from pgmq_grpc._requests import outcome, refuse_too_large
from pgmq_grpc._types import Outcome, SettleAction
from pgmq_grpc.v1 import queue_service_pb2 as contract

if TYPE_CHECKING:
    from pgmq_grpc._async.client import AsyncClient
    from pgmq_grpc._convert import Span
    from pgmq_grpc._session import Session

logger = logging.getLogger("pgmq_grpc")

_MOST_RECEIPTS = 1000

# How long a message that a handler has refused stays hidden, where neither the handler's caller nor the queue says.
_FIRST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 60.0

# The worker within which this runs, whatever tasks its handler has made.
_worker: ContextVar[object] = ContextVar("pgmq_grpc_worker", default=None)

Action = SettleAction | Literal["GIVE_BACK"]
Kind = tuple[Action | Literal["EXTEND"], float | None, str]
"""What is to be done, with its delay or timeout in seconds, and its reason."""


@dataclass(eq=False)
class Command:
    """One thing to be done to one message, and who waits for it, if anybody does."""

    message: AsyncMessage
    kind: Kind
    waiter: io.Future[Outcome] | None = None
    since: float = field(default_factory=time.monotonic)
    attempts: int = 0
    alone: bool = False
    is_last: bool = False

    def done(self, result: Outcome) -> None:
        """Tell what was done."""
        if self.alone and result == "NOT_FOUND" and self.kind[0] != "EXTEND":
            # The message is gone, most likely by the command for several that was refused.
            result = "DONE"
        if self.waiter is None:
            if result == "STALE":
                logger.warning("%r was read by somebody else before it was settled", self.message)
        elif not self.waiter.done():
            self.waiter.set_result(result)

    def failed(self, error: Exception) -> None:
        """Tell why it was not."""
        if self.waiter is None:
            logger.warning("%r could not be settled: %s", self.message, error)
        elif not self.waiter.done():
            self.waiter.set_exception(error)


class AsyncConsumer(AsyncSubscription[AsyncMessage]):
    """The messages of a queue, as they become visible, over a stream that survives restarts.

        async with client.queue("orders").consume() as messages:
            async for message in messages:
                print(message.message)
                await message.delete()

    What was received and is not settled is kept from others for as long as this process lives and has the message.
    `stop()` ends the messages, and with them loops and handlers: what is in hand is finished, and what was received and
    not given out yet is given back, uncounted. Leaving the `async with` block ends the stream.
    """

    def __init__(self, client: AsyncClient, start: contract.ConsumeStart) -> None:
        super().__init__(client, f"consumer of {start.queue!r}")
        self._start_command = start
        self._queue = client.queue(start.queue)
        self._commands: io.Mailbox[Command] = io.Mailbox()
        self._sent: dict[int, list[Command]] = {}
        self._last_id = 0
        self._in_hand: weakref.WeakKeyDictionary[AsyncMessage, tuple[Session, float]] = weakref.WeakKeyDictionary()
        self._most_extension = start.max_extension.ToNanoseconds() / 1e9 or 3600
        # What a stream brings while that of streams before is in hand: together they may be too many.
        self._held: deque[AsyncMessage] = deque()
        self._is_crowded = False
        self._workers: set[object] = set()
        self._has_retry_backoff = False

    async def run(
        self,
        handler: io.Handler[AsyncMessage],
        *,
        concurrency: int = 1,
        action: Literal["DELETE", "ARCHIVE"] = "DELETE",
        retry_delay: Span | None = None,
    ) -> None:
        """Give each message to a handler and settle it, until `stop`.

        When the handler returns, the message is deleted, or what `action` says, unless the handler has settled it. When
        it raises, the message is released: visible after `retry_delay`, or without one after the backoff of the queue's
        policy, or where it has none after a second, two, four, up to a minute. `concurrency` handlers run at a time.
        """
        if not io.suits(handler):
            raise TypeError(f"{handler!r} is no handler for a {type(self).__name__}")
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}: it has to be at least 1")
        if action not in {"DELETE", "ARCHIVE"}:
            raise ValueError(f"{action!r} is none of DELETE, ARCHIVE")
        if retry_delay is not None:
            limit(retry_delay, "retry_delay")
            _check(("RELEASE", seconds(retry_delay), ""))
        self._start()
        workers = [io.Task(self._work, handler, action, retry_delay) for _ in range(concurrency)]
        try:
            for worker in workers:
                await worker.join()
        except io.Cancelled:
            for worker in workers:
                worker.cancel()
            raise
        finally:
            self.stop()
            try:
                for worker in workers:
                    await worker.join()
            finally:
                await self.close()

    def stop(self) -> None:
        """Take no more messages. It does not wait, and may be called from anywhere, such as a handler of signals."""
        if self._is_elsewhere():
            return
        super().stop()
        with self._lock:
            left = [*self._items.drain(), *self._held]
            self._held.clear()
        for message in left:
            self._give_back(message)

    async def close(self) -> None:
        """Stop, wait for handlers that run, and end the stream once what is under way has its results."""
        if not self._is_elsewhere():
            self.stop()
            # A handler that calls this does not wait for itself.
            self._workers.discard(_worker.get())
            self._wake()
            await self._pauses.take(1, None, lambda: not self._workers)
        await super().close()

    async def settle_one(
        self, message: AsyncMessage, action: SettleAction, *, delay: Span | None = None, reason: str = ""
    ) -> Outcome:
        """Settle a message, as its own methods do."""
        kind = (action, None if delay is None else seconds(delay), reason)
        _check(kind)
        message.mark_settled()
        try:
            return await self._do(message, kind)
        except Exception:
            # It is in hand still: a handler that fails gives it back.
            message.settled = False
            raise

    async def extend_one(self, message: AsyncMessage, visibility_timeout: Span | None) -> Outcome:
        """Keep a message invisible, as its own method does."""
        kind: Kind = ("EXTEND", None if visibility_timeout is None else seconds(visibility_timeout), "")
        _check(kind)
        return await self._do(message, kind)

    async def _do(self, message: AsyncMessage, kind: Kind) -> Outcome:
        if self._is_elsewhere():
            # The stream belongs to the process that made it, but a receipt works everywhere.
            return (await self._queue.settle(*kind, message))[0]
        waiter: io.Future[Outcome] = io.future()
        command = Command(message, kind, waiter)
        if not self._submit(command):
            await self._call([command])
        return await io.outcome(waiter)

    def _submit(self, command: Command) -> bool:
        """Put a command where a stream takes it, unless there will be none."""
        with self._lock:
            if not self._finished:
                self._commands.put(command)
            return not self._finished

    def _settle(self, message: AsyncMessage, action: Action, *, delay: Span | None = None) -> None:
        """Settle a message without waiting for the result. The end of the consumer waits for it."""
        if not message.settled:
            message.mark_settled()
            self._submit(Command(message, (action, None if delay is None else seconds(delay), "")))

    def _give_back(self, message: AsyncMessage) -> None:
        """Let others have a message that was not given out, as if it had not come."""
        self._settle(message, "GIVE_BACK")

    async def _work(self, handler: io.Handler[AsyncMessage], action: SettleAction, retry_delay: Span | None) -> None:
        worker = object()
        _worker.set(worker)
        self._workers.add(worker)
        try:
            await self._handle(handler, action, retry_delay)
        finally:
            self._workers.discard(worker)
            self._wake()

    async def _handle(self, handler: io.Handler[AsyncMessage], action: SettleAction, retry_delay: Span | None) -> None:
        while (message := await self.receive()) is not None:
            try:
                await io.handle(handler, message)
            except Exception:
                logger.exception("the handler of %r failed", message)
                self._settle(message, "RELEASE", delay=self._pause_of(message) if retry_delay is None else retry_delay)
            except BaseException:
                self._settle(message, "RELEASE", delay=0)
                raise
            else:
                self._settle(message, action)

    def _pause_of(self, message: AsyncMessage) -> Span | None:
        """Give how long a message that fails stays hidden, unless the queue's policy says it."""
        if self._has_retry_backoff:
            return None
        pause: float = min(_FIRST_RETRY_SECONDS * 2 ** min(max(message.read_ct - 1, 0), 10), _LONGEST_RETRY_SECONDS)
        return pause * random.uniform(0.8, 1)  # noqa: S311

    def _wake(self) -> None:
        super()._wake()
        self._commands.wake()

    def _open(self, session: Session) -> Any:
        return self._client.raw.queue.Consume(self._requests(session), metadata=self._client.metadata())

    async def _requests(self, session: Session) -> AsyncIterator[contract.ConsumeRequest]:
        yield contract.ConsumeRequest(start=self._start_command)
        told_to_stop = False

        def is_due() -> bool:
            due = session.until_sign() == 0
            return due or session.is_over or self._closing or (self._stopping and not told_to_stop)

        while not session.is_over:
            if self._stopping and not told_to_stop:
                told_to_stop = True
                yield contract.ConsumeRequest(stop=contract.Stop())
            commands = await self._commands.take(_MOST_RECEIPTS, session.until_sign(), is_due)
            if not commands and self._closing:
                return
            for request in self._written(session, commands):
                yield request
            if session.until_sign() == 0:
                session.show_life()
                for request in self._signs_of_life(session):
                    yield request

    def _written(self, session: Session, commands: list[Command]) -> list[contract.ConsumeRequest]:
        """Write commands, one request for all that are to be done alike."""
        with self._lock:
            if session.ended:
                self._commands.put_back(commands)
                return []
            written = []
            for group in _alike(commands):
                self._last_id += 1
                self._sent[self._last_id] = group
                receipts = [command.message.receipt for command in group]
                written.append(_request(self._last_id, group[0].kind, receipts))
            return written

    def _signs_of_life(self, session: Session) -> list[contract.ConsumeRequest]:
        """Show that this process lives, and extend what came over streams that have ended."""
        self._hand_over()
        with self._lock:
            older = self._older(session) if self._start_command.auto_extend else []
        receipts = [message.receipt for message in older]
        parts = [receipts[start : start + _MOST_RECEIPTS] for start in range(0, len(receipts), _MOST_RECEIPTS)]
        # Nobody waits for the results of these: request 0 is of nobody.
        return [_request(0, ("EXTEND", None, ""), part) for part in parts] or [
            contract.ConsumeRequest(heartbeat=contract.ClientHeartbeat())
        ]

    def _receive(self, session: Session, response: contract.ConsumeResponse) -> None:
        json = self._client.json
        if response.HasField("started"):
            self._has_retry_backoff = response.started.has_retry_backoff
        for raw in response.messages:
            message = AsyncMessage(self._start_command.queue, raw, json, self)
            with self._lock:
                self._in_hand[message] = (session, time.monotonic())
                if self._is_crowded and not self._stopping:
                    self._held.append(message)
                    continue
                if not self._stopping:
                    self._items.put(message)
                    continue
            self._give_back(message)
        for result in response.command_results:
            with self._lock:
                commands = self._sent.pop(result.request_id, ())
            if result.HasField("error"):
                self._refused(commands, PgmqError.from_command(result.error))
            else:
                for command, each in zip(commands, result.results, strict=False):
                    command.done(outcome(each))
        self._hand_over()

    def _unsettled(self) -> list[tuple[AsyncMessage, Session]]:
        """Give what is kept from others, and the streams that it came over."""
        now, extended = time.monotonic(), self._start_command.auto_extend
        return [
            (message, origin)
            for message, (origin, since) in self._in_hand.items()
            if not message.settled
            and now < since + (self._most_extension if extended else message.visibility_timeout.total_seconds())
        ]

    def _older(self, session: Session) -> list[AsyncMessage]:
        return [message for message, origin in self._unsettled() if origin is not session]

    def _hand_over(self) -> None:
        """Give out what was held back, as far as there is room beside what came over the streams before."""
        with self._lock:
            if not self._is_crowded or self._stopping:
                return
            held = set(self._held)
            given = [origin for message, origin in self._unsettled() if message not in held]
            alone = all(origin is self._session for origin in given)
            room = len(held) if alone else self._start_command.max_in_flight - len(given)
            for _ in range(min(room, len(held))):
                self._items.put(self._held.popleft())
            self._is_crowded = not alone or bool(self._held)

    def _refused(self, commands: Sequence[Command], error: PgmqError) -> None:
        """Do again what the server says may be done again, after a pause, and tell of the rest."""
        again = []
        if _is_of_one(error, commands):
            for command in commands:
                command.alone = True
            self._commands.put_back(commands)
            return
        for command in commands:
            command.attempts += 1
            # Who waits for a result may decide about locks and conflicts; what a handler has done is to be settled.
            may_repeat = error.may_repeat or (command.waiter is None and error.code is grpc.StatusCode.ABORTED)
            if may_repeat and (command.is_last or self._is_young(command)) and not self._closing:
                again.append(command)
            else:
                command.failed(error)
                self._let_go(command)
        if again:
            io.Task(self._again, again, backoff(again[0].attempts, error))

    def _let_go(self, command: Command) -> None:
        """Have a message come back that nobody settles any more: the server would extend it still."""
        if command.waiter is None and not command.is_last and command.kind[0] != "GIVE_BACK":
            kind: Kind = ("RELEASE", self._session.visibility_timeout or None, "")
            self._submit(Command(command.message, kind, is_last=True))

    async def _again(self, commands: Sequence[Command], pause: float) -> None:
        await self._pauses.take(1, pause, lambda: self._closing)
        for command in commands:
            if not self._submit(command):
                await self._call([command])

    def _lost(self, session: Session, failure: Exception | None) -> None:
        # A receipt outlives its stream, and to settle twice does no harm.
        with self._lock:
            commands = [command for group in self._sent.values() for command in group]
            self._sent.clear()
            self._is_crowded = self._is_crowded or bool(self._unsettled())
        self._commands.put_back(commands)

    async def _between(self, seconds: float, failure: Exception | None) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and self._is_wanted():
            commands = await self._commands.take(_MOST_RECEIPTS, left, lambda: not self._is_wanted())
            again = await self._call(commands, keep=True)
            if again:
                self._commands.put_back(again)
                await super()._between(deadline - time.monotonic(), failure)

    async def _finish(self) -> None:
        # Handlers may be at work still.
        while not self._closing or self._commands:
            await self._call(await self._commands.take(_MOST_RECEIPTS, None, lambda: self._closing))

    async def _call(self, commands: list[Command], *, keep: bool = False) -> list[Command]:
        """Do without a stream what is to be done. With `keep`, returns what can wait for the next stream instead."""
        kept: list[Command] = []
        groups = _alike(commands)
        while groups:
            group = groups.pop(0)
            try:
                results = await self._queue.settle(*group[0].kind, [command.message for command in group])
            except PgmqError as error:
                if _is_of_one(error, group):
                    for command in group:
                        command.alone = True
                    groups += [[command] for command in group]
                    continue
                for command in group:
                    if keep and error.is_temporary and self._is_young(command):
                        kept.append(command)
                    else:
                        command.failed(error)
            except Exception as error:  # noqa: BLE001
                # Such as one of the application's own function for metadata, which may work the next time.
                for command in group:
                    if keep and self._is_young(command):
                        kept.append(command)
                    else:
                        command.failed(error)
            else:
                for command, result in zip(group, results, strict=True):
                    command.done(result)
        return kept

    def _is_young(self, command: Command) -> bool:
        return time.monotonic() < command.since + self._client.timeout


def _alike(commands: Sequence[Command]) -> list[list[Command]]:
    """Put together what is to be done alike, but for what is to be done alone."""
    groups: dict[tuple[Kind, Command | None], list[Command]] = {}
    for command in commands:
        groups.setdefault((command.kind, command if command.alone else None), []).append(command)
    return list(groups.values())


def _is_of_one(error: PgmqError, commands: Sequence[Command]) -> bool:
    """Tell whether an error may be that of one message among several, so that each is to have its own answer."""
    return error.reason in UNDONE_IN_PART and len(commands) > 1


def _check(kind: Kind) -> None:
    """Raise what is wrong with a command here, and not on the stream that all messages share."""
    refuse_too_large(_request(0, kind, []))


def _request(request_id: int, kind: Kind, receipts: list[str]) -> contract.ConsumeRequest:
    action, span, reason = kind
    given = None if span is None else duration(span)
    if action == "EXTEND":
        extend = contract.Extend(receipts=receipts, visibility_timeout=given)
        return contract.ConsumeRequest(request_id=request_id, extend=extend)
    number = contract.SettleAction.Value(f"SETTLE_ACTION_{action}")
    settle = contract.Settle(receipts=receipts, action=number, delay=given, reason=reason)
    return contract.ConsumeRequest(request_id=request_id, settle=settle)
