"""What is particular to asyncio. `_sync/io.py` has the same names for threads."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
import grpc.aio

from pgmq_grpc._options import Options, first_user
from pgmq_grpc._session import Streams
from pgmq_grpc.v1.admin_service_pb2_grpc import AdminServiceStub
from pgmq_grpc.v1.queue_service_pb2_grpc import QueueServiceStub
from pgmq_grpc.v1.topic_service_pb2_grpc import TopicServiceStub
from pgmq_grpc.v1.transaction_service_pb2_grpc import TransactionServiceStub

if TYPE_CHECKING:
    from pgmq_grpc.v1.admin_service_pb2_grpc import AdminServiceAsyncStub
    from pgmq_grpc.v1.queue_service_pb2_grpc import QueueServiceAsyncStub
    from pgmq_grpc.v1.topic_service_pb2_grpc import TopicServiceAsyncStub
    from pgmq_grpc.v1.transaction_service_pb2_grpc import TransactionServiceAsyncStub

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")

UnaryMethod = grpc.aio.UnaryUnaryMultiCallable[Q, R]
Interceptor = grpc.aio.ClientInterceptor
Handler = Callable[[T], Awaitable[object]]
Future = asyncio.Future
Lock = nullcontext[None]
Semaphore = asyncio.Semaphore
Cancelled = asyncio.CancelledError
TimedOut = asyncio.TimeoutError


@dataclass(frozen=True)
class Stubs:
    """The generated stubs, one for each service."""

    queue: QueueServiceAsyncStub
    topic: TopicServiceAsyncStub
    admin: AdminServiceAsyncStub
    transaction: TransactionServiceAsyncStub


class Connection:
    """A channel, made when it is first needed, since it belongs to the event loop that runs then."""

    def __init__(self, options: Options, interceptors: Sequence[Interceptor]) -> None:
        self._options = options
        self._interceptors = list(interceptors)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams = Streams()
        self._closed = False

    def stubs(self) -> Stubs:
        """Give the stubs of the running event loop's channel."""
        if self._closed:
            raise RuntimeError("the client is closed")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._channel = self._open()
            self._stubs = Stubs(
                QueueServiceStub(self._channel),
                TopicServiceStub(self._channel),
                AdminServiceStub(self._channel),
                TransactionServiceStub(self._channel),
            )
            self._streams = Streams()
            self._loop = loop
        return self._stubs

    @property
    def streams(self) -> Streams:
        """What is under way on the running event loop's channel, if there is one."""
        return self._streams if self._loop is asyncio.get_running_loop() else Streams()

    async def close(self) -> None:
        """Close the channel. What is under way on it ends."""
        self._closed = True
        if self._loop is asyncio.get_running_loop():
            await self._channel.close()
        self._loop = None

    def _open(self) -> grpc.aio.Channel:
        given = self._options
        if first_user() != os.getpid():
            raise RuntimeError("gRPC for asyncio does not survive a fork: start this process by spawn, or use Client")
        if given.credentials is None:
            return grpc.aio.insecure_channel(given.target, given.channel_options, interceptors=self._interceptors)
        return grpc.aio.secure_channel(
            given.target, given.credentials, given.channel_options, interceptors=self._interceptors
        )


async def responses(call: AsyncIterable[R]) -> AsyncIterator[R]:
    """Give what a stream brings."""
    async for response in call:
        yield response


async def handle(handler: Callable[[T], object], message: T) -> None:
    """Let a handler do its work. A plain function may be one, too."""
    if inspect.isawaitable(result := handler(message)):
        await result


def suits(handler: object) -> bool:
    """Tell whether a handler can be one here."""
    return callable(handler)


async def pause(seconds: float) -> None:
    """Wait."""
    await asyncio.sleep(seconds)


def future() -> Future[Any]:
    """Make a place for a result that comes later."""
    return asyncio.get_running_loop().create_future()


async def outcome(of: Future[T], timeout: float | None = None) -> T:
    """Wait for a result that comes later. After the time, there is to be none."""
    if timeout is None:
        return await of
    timer = asyncio.get_running_loop().call_later(timeout, _expire, of)
    try:
        return await of
    finally:
        timer.cancel()


async def acquire(places: Semaphore, timeout: float | None) -> bool:
    """Take a place, and tell whether there was one in time."""
    if timeout is None or not places.locked():
        return await places.acquire()
    try:
        return await asyncio.wait_for(places.acquire(), timeout)
    except TimedOut:
        return False


def claim(of: Future[Any]) -> bool:
    """Tell whether somebody wants the result, who from now on has to wait for it."""
    return not of.done()


class Task:
    """Something that runs beside its maker."""

    def __init__(self, run: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        self._task = asyncio.get_running_loop().create_task(run(*arguments))

    async def join(self, timeout: float | None = None) -> bool:
        """Wait for its end, raise what it raised, and tell whether it has ended within the time."""
        await asyncio.wait([self._task], timeout=timeout)
        if not self._task.done():
            return False
        with suppress(asyncio.CancelledError):
            self._task.result()
        return True

    def cancel(self) -> None:
        """End it where it waits."""
        self._task.cancel()


def _never() -> bool:
    return False


class Mailbox(Generic[T]):
    """A queue without bounds, from which several may take, many items at once."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item, and wake one of those who wait."""
        self._items.append(item)
        self._wake_one()

    def put_back(self, items: Sequence[T]) -> None:
        """Add items before all others, in their order."""
        self._items.extendleft(reversed(items))
        self._wake_one()

    def drain(self) -> list[T]:
        """Take what is there."""
        items = list(self._items)
        self._items.clear()
        return items

    def wake(self) -> None:
        """Let all who wait look at their condition again."""
        while self._waiters:
            self._wake_one()

    async def take(self, limit: int, timeout: float | None = None, until: Callable[[], bool] = _never) -> list[T]:
        """Take up to `limit` items: at once if there are any, else as soon as there are.

        None come when the time is up, or `until` is true.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        while not self._items and not until():
            if deadline is not None and loop.time() >= deadline:
                break
            await self._wait(deadline)
        return [self._items.popleft() for _ in range(min(limit, len(self._items)))]

    async def _wait(self, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiters.append(waiter)
        timer = None if deadline is None else loop.call_at(deadline, _resolve, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            # Whoever was woken and does not come must not swallow it.
            if waiter.done() and not waiter.cancelled():
                self._wake_one()
            raise
        finally:
            if timer is not None:
                timer.cancel()
            with suppress(ValueError):
                self._waiters.remove(waiter)

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


def _expire(waiter: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_exception(TimedOut())


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
