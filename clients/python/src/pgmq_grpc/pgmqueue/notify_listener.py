"""Listeners of pgmq-py: a callback for what is sent to a queue.

They watch the queue at the server, so that `enable_notify` is not needed, and a queue that does not exist is an error.
A connection that breaks is made again; what is sent meanwhile is not told.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from .logger import log_with_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .async_queue import AsyncPGMQueue
    from .queue import PGMQueue

__all__ = ["AsyncNotificationListener", "SyncNotificationListener"]


def _payload() -> dict[str, Any]:
    # pgmq notifies without a payload, which pgmq-py tells so.
    return {"event": "insert", "payload_empty": True}


class SyncNotificationListener:
    """Calls back for what is sent to a queue, in the thread that listens."""

    def __init__(self, queue_client: PGMQueue) -> None:
        self.queue_client = queue_client
        self.logger = queue_client.logger
        self._stopped = False
        self._watcher: Any = None

    def listen(
        self, queue_name: str, callback: Callable[[dict[str, Any]], object], timeout: float | None = None
    ) -> None:
        """Listen until `stop`, or until `timeout` seconds are over. Several messages may be told as one."""
        end = None if timeout is None else time.monotonic() + timeout
        log_with_context(self.logger, logging.INFO, "Starting notification listener", queue_name=queue_name)
        with self.queue_client.client.watch([queue_name]) as self._watcher:
            while not self._stopped:
                event = self._watcher.receive(None if end is None else max(end - time.monotonic(), 0))
                if event is None:
                    break
                if event.kind == "SENT":
                    callback(_payload())
        log_with_context(self.logger, logging.INFO, "Notification listener ended", queue_name=queue_name)

    def stop(self) -> None:
        """Let `listen` return; from a callback or another thread."""
        self._stopped = True
        if self._watcher is not None:
            self._watcher.stop()


class AsyncNotificationListener:
    """Calls back for what is sent to a queue, in the task that listens."""

    def __init__(self, queue_client: AsyncPGMQueue) -> None:
        self.queue_client = queue_client
        self.logger = queue_client.logger
        self._stopped = False
        self._watcher: Any = None

    async def listen(self, queue_name: str, callback: Callable[[dict[str, Any]], Awaitable[object]]) -> None:
        """Listen until `stop`. A callback that fails is logged. Several messages may be told as one."""
        log_with_context(self.logger, logging.INFO, "Starting async notification listener", queue_name=queue_name)
        async with self.queue_client.client.watch([queue_name]) as self._watcher:
            while not self._stopped:
                event = await self._watcher.receive()
                if event is None:
                    break
                if event.kind != "SENT":
                    continue
                try:
                    await callback(_payload())
                except Exception as error:  # noqa: BLE001 -- as in pgmq-py, where the listener goes on
                    log_with_context(self.logger, logging.ERROR, f"Error in callback: {error}", queue_name=queue_name)
        log_with_context(self.logger, logging.INFO, "Async notification listener ended", queue_name=queue_name)

    def stop(self) -> None:
        """Let `listen` return."""
        self._stopped = True
        if self._watcher is not None:
            self._watcher.stop()
