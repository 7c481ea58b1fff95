"""What is particular to threads: the same names as in `_async/io.py`."""

from __future__ import annotations

import inspect
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import grpc

from pgmq_grpc._options import Options, first_user
from pgmq_grpc._session import Streams
from pgmq_grpc.v1.admin_service_pb2_grpc import AdminServiceStub
from pgmq_grpc.v1.queue_service_pb2_grpc import QueueServiceStub
from pgmq_grpc.v1.topic_service_pb2_grpc import TopicServiceStub
from pgmq_grpc.v1.transaction_service_pb2_grpc import TransactionServiceStub

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")

UnaryMethod: TypeAlias = "grpc.UnaryUnaryMultiCallable[Q, R]"
Interceptor = (
    grpc.UnaryUnaryClientInterceptor
    | grpc.UnaryStreamClientInterceptor
    | grpc.StreamUnaryClientInterceptor
    | grpc.StreamStreamClientInterceptor
)
Handler = Callable[[T], object]
Future = futures.Future
Lock = threading.RLock
Semaphore = threading.Semaphore
TimedOut = futures.TimeoutError


class Cancelled(BaseException):
    """Threads are not cancelled: nobody raises this."""


@dataclass(frozen=True)
class Stubs:
    """The generated stubs, one for each service."""

    queue: QueueServiceStub
    topic: TopicServiceStub
    admin: AdminServiceStub
    transaction: TransactionServiceStub


class Connection:
    """A channel, made when it is first needed, and once in each process: a fork gets one of its own."""

    def __init__(self, options: Options, interceptors: Sequence[Interceptor]) -> None:
        self._options = options
        self._interceptors = list(interceptors)
        self._lock = threading.Lock()
        self._stubs: Stubs | None = None
        self.streams = Streams()
        self._closed = False
        _connections.add(self)

    def stubs(self) -> Stubs:
        """Give the stubs of this process's channel."""
        _may_call.wait()
        return self._stubs or self._open()

    def close(self) -> None:
        """Close the channel. What is under way on it ends."""
        with self._lock:
            self._closed = True
            if self._stubs is not None:
                self._channel.close()
            self._stubs = None

    def forget(self) -> None:
        """Leave the channel to the parent of this process: here it cannot even be closed."""
        self._lock = threading.Lock()
        if self._stubs is not None:
            _of_parents.append(self._channel)
        self._stubs = None
        self.streams = Streams()

    def _open(self) -> Stubs:
        given = self._options
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._stubs is not None:
                return self._stubs
            first_user()
            if given.credentials is None:
                self._channel = grpc.insecure_channel(given.target, given.channel_options)
            else:
                self._channel = grpc.secure_channel(given.target, given.credentials, given.channel_options)
            channel = grpc.intercept_channel(self._channel, *self._interceptors)
            self._stubs = Stubs(
                QueueServiceStub(channel),
                TopicServiceStub(channel),
                AdminServiceStub(channel),
                TransactionServiceStub(channel),
            )
            return self._stubs


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()
_of_parents: list[grpc.Channel] = []
# Set, but while a fork is under way.
_may_call = threading.Event()
_may_call.set()

# So long, at most, does a fork wait for a stream to end.
_FORK_SECONDS = 1.0


def _before_fork() -> None:
    """End all streams, and let nobody begin a call: gRPC does not survive a fork that finds it at work."""
    _may_call.clear()
    for connection in list(_connections):
        for link in connection.streams.links.copy():
            link.rest(_FORK_SECONDS)


def _after_fork() -> None:
    _may_call.set()


def _after_fork_in_child() -> None:
    global _may_call
    # A thread that is not here any more may have been using it.
    _may_call = threading.Event()
    for connection in list(_connections):
        connection.forget()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


def responses(call: Iterable[R]) -> Iterator[R]:
    """Give what a stream brings."""
    yield from call


def handle(handler: Handler[T], message: T) -> None:
    """Let a handler do its work."""
    handler(message)


def suits(handler: object) -> bool:
    """Tell whether a handler can be one here: what only makes a coroutine would do nothing."""
    return callable(handler) and not inspect.iscoroutinefunction(handler)


def pause(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


def future() -> Future[Any]:
    """Make a place for a result that comes later."""
    return futures.Future()


def outcome(of: Future[T], timeout: float | None = None) -> T:
    """Wait for a result that comes later. After the time, there is to be none."""
    try:
        return of.result(timeout)
    except TimedOut:
        of.cancel()
        raise


def acquire(places: Semaphore, timeout: float | None) -> bool:
    """Take a place, and tell whether there was one in time."""
    return places.acquire(timeout=timeout)


def claim(of: Future[Any]) -> bool:
    """Tell whether somebody wants the result, who from now on has to wait for it."""
    return of.running() or of.set_running_or_notify_cancel()


class Task:
    """Something that runs beside its maker, in a thread that does not keep the process from ending."""

    def __init__(self, run: Callable[..., None], *arguments: object) -> None:
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(run, arguments), name="pgmq-grpc", daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for its end, raise what it raised, and tell whether it has ended within the time."""
        self._thread.join(timeout)
        if self._failure is not None:
            raise self._failure
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Do nothing: a thread ends by itself."""

    def _run(self, run: Callable[..., None], arguments: tuple[object, ...]) -> None:
        try:
            run(*arguments)
        except BaseException as failure:  # noqa: BLE001
            self._failure = failure


def _never() -> bool:
    return False


class Mailbox(Generic[T]):
    """A queue without bounds, from which several may take, many items at once."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item, and wake one of those who wait."""
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def put_back(self, items: Sequence[T]) -> None:
        """Add items before all others, in their order."""
        with self._changed:
            self._items.extendleft(reversed(items))
            self._changed.notify()

    def drain(self) -> list[T]:
        """Take what is there."""
        with self._changed:
            items = list(self._items)
            self._items.clear()
            return items

    def wake(self) -> None:
        """Let all who wait look at their condition again."""
        with self._changed:
            self._changed.notify_all()

    def take(self, limit: int, timeout: float | None = None, until: Callable[[], bool] = _never) -> list[T]:
        """Take up to `limit` items: at once if there are any, else as soon as there are.

        None come when the time is up, or `until` is true.
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items) or until(), timeout)
            return [self._items.popleft() for _ in range(min(limit, len(self._items)))]
