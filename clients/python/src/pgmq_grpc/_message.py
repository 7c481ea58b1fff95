"""What a message tells, for asyncio and threads alike."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pgmq_grpc._convert import moment

if TYPE_CHECKING:
    from datetime import datetime

    from pgmq_grpc._json import JsonLibrary
    from pgmq_grpc.v1 import message_pb2

_UNREAD: Any = object()


class MessageFields:
    """A message of a queue, as it was when the call took hold of it."""

    __slots__ = ("__weakref__", "_headers", "_json", "_message", "_raw", "queue", "settled")

    def __init__(self, queue: str, raw: message_pb2.Message, json: JsonLibrary) -> None:
        self.queue = queue
        """The name of its queue."""
        self.settled = False
        """Whether this object was used to delete, archive, release or dead-letter it."""
        self._raw = raw
        self._json = json
        self._message = self._headers = _UNREAD

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.msg_id} of {self.queue!r}, read {self.read_ct} times>"

    @property
    def msg_id(self) -> int:
        """The id, unique within its queue."""
        return self._raw.msg_id

    @property
    def read_ct(self) -> int:
        """How often it was read, this time included."""
        return self._raw.read_ct

    @property
    def enqueued_at(self) -> datetime:
        """When it was sent."""
        return moment(self._raw.enqueued_at)

    @property
    def last_read_at(self) -> datetime | None:
        """When it was last read, or None if never."""
        return moment(self._raw.last_read_at) if self._raw.HasField("last_read_at") else None

    @property
    def vt(self) -> datetime:
        """When it becomes visible to other readers."""
        return moment(self._raw.vt)

    @property
    def visibility_timeout(self) -> timedelta:
        """How long it was made invisible by the read that gave it, in whole seconds."""
        return timedelta(seconds=round((self.vt - (self.last_read_at or self.enqueued_at)).total_seconds()))

    @property
    def message(self) -> Any:
        """The body, as the client's JSON library reads it. None where there is no text."""
        if self._message is _UNREAD:
            text = self._raw.message
            self._message = self._json.loads(text) if text else None
        return self._message

    @property
    def message_text(self) -> str:
        """The body, as the text that came."""
        return self._raw.message

    @property
    def headers(self) -> dict[str, Any] | None:
        """The headers, or None."""
        if self._headers is _UNREAD:
            text = self._raw.headers
            self._headers = self._json.loads(text) if text else None
        headers: dict[str, Any] | None = self._headers
        return headers

    @property
    def headers_text(self) -> str:
        """The headers, as the text that came; empty without any."""
        return self._raw.headers

    @property
    def receipt(self) -> str:
        """What names this delivery; empty in what was popped or listed."""
        return self._raw.receipt

    @property
    def texts_omitted(self) -> bool:
        """Whether a list left the body out, because nothing can carry it."""
        return self._raw.texts_omitted

    def mark_settled(self) -> None:
        """Note that the message is not in hand any more, where something else has settled it."""
        self.settled = True
