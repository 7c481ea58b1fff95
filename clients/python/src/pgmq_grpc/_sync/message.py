# Made of _async/message.py by make_sync.py: change it there.
"""A message that settles itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pgmq_grpc._message import MessageFields

if TYPE_CHECKING:
    from pgmq_grpc._convert import Span
    from pgmq_grpc._json import JsonLibrary
    from pgmq_grpc._types import Outcome, SettleAction
    from pgmq_grpc.v1 import message_pb2


class Settler(Protocol):
    """What settles messages: the stream that they came over, or calls."""

    def settle_one(
        self, message: Message, action: SettleAction, *, delay: Span | None = None, reason: str = ""
    ) -> Outcome:
        """Settle a message."""

    def extend_one(self, message: Message, visibility_timeout: Span | None) -> Outcome:
        """Keep a message invisible."""


class Message(MessageFields):
    """A message that was read. Settle it before its visibility timeout ends, or it is read again."""

    __slots__ = ("_settler",)

    def __init__(self, queue: str, raw: message_pb2.Message, json: JsonLibrary, settler: Settler) -> None:
        super().__init__(queue, raw, json)
        self._settler = settler

    def delete(self) -> Outcome:
        """Remove it for good."""
        return self._settler.settle_one(self, "DELETE")

    def archive(self) -> Outcome:
        """Move it to the archive of its queue."""
        return self._settler.settle_one(self, "ARCHIVE")

    def release(self, delay: Span | None = None) -> Outcome:
        """Give it back: visible after `delay`, or without one after the backoff of the queue's policy, or at once."""
        return self._settler.settle_one(self, "RELEASE", delay=delay)

    def dead_letter(self, reason: str = "") -> Outcome:
        """Move it to the dead-letter queue of the queue's policy, where the reason stands in a header."""
        return self._settler.settle_one(self, "DEAD_LETTER", reason=reason)

    def extend(self, visibility_timeout: Span | None = None) -> Outcome:
        """Keep it invisible from now: for so long, or for the visibility timeout with which it was consumed."""
        return self._settler.extend_one(self, visibility_timeout)
