"""Functions that run in a transaction, which they are given as ``conn``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .async_connection import AsyncPool
    from .connection import Pool

__all__ = ["async_transaction", "transaction"]

P = ParamSpec("P")
R = TypeVar("R")


class _HasPool(Protocol):
    @property
    def pool(self) -> Pool: ...


class _HasAsyncPool(Protocol):
    @property
    def pool(self) -> AsyncPool: ...


Q = TypeVar("Q", bound=_HasPool)
A = TypeVar("A", bound=_HasAsyncPool)


def transaction(func: Callable[Concatenate[Q, P], R]) -> Callable[Concatenate[Q, P], R]:
    """Decorate a function, or a method, of which the first argument is a `PGMQueue`, or else has its ``pool``.

    Called without ``conn``, it is given one, as a keyword: what it does with that is committed when it returns, and
    rolled back when it raises. Called with one, it becomes a part of that transaction.
    """

    @functools.wraps(func)
    def wrapper(self: Q, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if kwargs.get("conn") is not None:
            return func(self, *args, **kwargs)
        with self.pool.connection() as conn, conn.transaction():
            kwargs["conn"] = conn
            return func(self, *args, **kwargs)

    return wrapper


def async_transaction(
    func: Callable[Concatenate[A, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[A, P], Coroutine[Any, Any, R]]:
    """Decorate an asynchronous function, of which the first argument is an `AsyncPGMQueue`; see `transaction`."""

    @functools.wraps(func)
    async def wrapper(self: A, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if kwargs.get("conn") is not None:
            return await func(self, *args, **kwargs)
        async with self.pool.acquire() as conn, conn.transaction():
            kwargs["conn"] = conn
            return await func(self, *args, **kwargs)

    return wrapper
