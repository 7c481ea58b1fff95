"""Functions that run in a transaction, which they are given as ``conn``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pgmq_grpc.pgmqueue.decorators import async_transaction

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["async_transaction", "transaction"]

P = ParamSpec("P")
R = TypeVar("R")


def transaction(func: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function or a method that is given a `PGMQueue`: first, or by the name ``queue``.

    Called without ``conn``, it is given one, as a keyword: what it does with that is committed when it returns, and
    rolled back when it raises. Called with one, it becomes a part of that transaction.
    """

    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if kwargs.get("conn") is not None:
            return func(*args, **kwargs)
        queue: Any = args[0] if args and hasattr(args[0], "pool") else kwargs["queue"]
        with queue.pool.connection() as conn, conn.transaction():
            kwargs["conn"] = conn
            return func(*args, **kwargs)

    return wrapper
