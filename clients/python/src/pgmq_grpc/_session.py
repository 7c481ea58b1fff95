"""What is known of streams."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

    from pgmq_grpc.v1 import message_pb2


class Streams:
    """What is under way on one channel. The channel of another process, or of another event loop, has its own."""

    def __init__(self) -> None:
        self.closing = False
        self.links: set[Any] = set()
        self.lanes: dict[str, Any] = {}
        self.no_lanes_until = 0.0
        # Adding to it and taking from it needs no lock.
        self.sends: deque[None] = deque()


class Session:
    """One stream, from its opening to its end: how it lives, and when it is to be left.

    Silence for two heartbeat intervals means that it is dead. After `closing` it goes on for the delay that the server
    asks for, with results of what is under way, and is left then.
    """

    def __init__(self) -> None:
        self.call: Any = None
        self.started = False
        self.ended = False
        self.abandoned = False
        self.closing = False
        self.visibility_timeout = 0.0
        self._interval = 25.0
        self._heard = self._showed = time.monotonic()
        self._leave_at = float("inf")

    def hear(self, response: Any) -> None:
        """Take the notices of a response."""
        self._heard = time.monotonic()
        if response.HasField("started"):
            self.started = True
            # The first sign of life is due at once: it extends what came over the stream before.
            self._showed = float("-inf")
            self._interval = _seconds(response.started.heartbeat_interval) or self._interval
            if response.DESCRIPTOR.name == "ConsumeResponse":
                self.visibility_timeout = _seconds(response.started.visibility_timeout)
        if response.HasField("closing"):
            closing: message_pb2.Closing = response.closing
            self.closing = True
            self._leave_at = self._heard + _seconds(closing.retry_delay)

    def show_life(self) -> None:
        """Note that a sign of life is sent."""
        self._showed = time.monotonic()

    def until_sign(self) -> float:
        """Give the seconds until a sign of life is due, or the stream is to be left."""
        next_sign = self._showed + min(self._interval, self.visibility_timeout / 2 or self._interval)
        return max(min(next_sign, self._leave_at) - time.monotonic(), 0)

    @property
    def interval(self) -> float:
        """The longest silence of the server, in seconds."""
        return self._interval

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or is to be left by now."""
        return self.ended or time.monotonic() >= self._leave_at

    @property
    def is_silent(self) -> bool:
        """Whether the server has said nothing for too long."""
        return time.monotonic() > self._heard + 2 * self._interval

    def delay_left(self) -> float:
        """Give how much of the delay is left that the server asked for by `closing`."""
        return max(self._leave_at - time.monotonic(), 0) if self.closing else 0

    def leave(self) -> None:
        """Send nothing more, and take what the server has to say still."""
        self._leave_at = time.monotonic()

    def abandon(self) -> None:
        """Leave it at once."""
        self.abandoned = True
        if self.call is not None and self.can_be_cancelled:
            self.call.cancel()

    @property
    def can_be_cancelled(self) -> bool:
        """Whether the call can be ended from here. What instrumentation makes of one ends with its channel only."""
        return hasattr(self.call, "cancel")


def _seconds(span: Duration) -> float:
    return span.ToNanoseconds() / 1_000_000_000
