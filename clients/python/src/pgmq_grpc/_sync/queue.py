# Made of _async/queue.py by make_sync.py: change it there.
"""A queue: a name with methods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from pgmq_grpc._convert import Span, moment, request, result, seconds
from pgmq_grpc._json import text_of
from pgmq_grpc._requests import Items, batch, described, items_of, may_repeat, outcomes, outgoing, settling
from pgmq_grpc._sync import io, lane
from pgmq_grpc._sync.consumer import Consumer
from pgmq_grpc._sync.message import Message
from pgmq_grpc._sync.producer import Producer
from pgmq_grpc._sync.watcher import Watcher
from pgmq_grpc._types import (
    ArchiveDeletion,
    CreatedQueue,
    MessageState,
    Ordering,
    Outcome,
    Partitioning,
    QueueInfo,
    QueueKind,
    QueueLayout,
    QueueMetrics,
    QueuePolicy,
    Redrive,
    Replay,
    SendResult,
    SettleAction,
)
from pgmq_grpc.v1 import admin_service_pb2 as admin
from pgmq_grpc.v1 import message_pb2
from pgmq_grpc.v1 import queue_service_pb2 as contract

if TYPE_CHECKING:
    from pgmq_grpc._sync.client import Client


class ArchivedMessage:
    """A message of an archive, without a receipt, and when it was archived."""

    __slots__ = ("archived_at", "message")

    def __init__(self, message: Message, archived_at: datetime) -> None:
        self.message = message
        self.archived_at = archived_at


class Queue:
    """One queue of a client. Making it asks nobody, and the queue need not exist yet."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def create(
        self,
        *,
        kind: QueueKind | None = None,
        partitioning: Partitioning | None = None,
        policy: QueuePolicy | None = None,
        fail_if_exists: bool = False,
        layout: QueueLayout | None = None,
    ) -> CreatedQueue:
        """Create the queue with its archive; one that is there as described is left as it is."""
        return self._client.create_queue(
            self.name,
            kind=kind,
            partitioning=partitioning,
            policy=policy,
            fail_if_exists=fail_if_exists,
            layout=layout,
        )

    def get(self) -> QueueInfo:
        """Describe the queue, with its policy."""
        return self._client.get_queue(self.name)

    def update(self, policy: QueuePolicy | None = None, *, clear: Iterable[str] = ()) -> QueueInfo:
        """Change the fields of the policy that are set here, and clear those that are named; the others stay."""
        return self._client.update_queue(self.name, policy, clear=clear)

    def drop(self) -> None:
        """Remove the queue for good, with its messages and its archive."""
        self._client.drop_queue(self.name)

    def purge(self) -> int:
        """Remove all messages for good, and tell how many. The archive stays."""
        return self._client.purge_queue(self.name)

    def metrics(self, *, include_archive: bool = False) -> QueueMetrics:
        """Count the messages."""
        return self._client.get_queue_metrics(self.name, include_archive=include_archive)

    def set_layout(self, layout: QueueLayout) -> QueueInfo:
        """Change how the table is laid out. Messages and answers stay the same."""
        return self._client.set_queue_layout(self.name, layout)

    def bind_topic(self, pattern: str) -> bool:
        """Receive what is sent by routing keys that match, and tell whether that is new."""
        return self._client.bind_topic(pattern, self.name)

    def unbind_topic(self, pattern: str) -> bool:
        """Remove a binding, and tell whether there was one."""
        return self._client.unbind_topic(pattern, self.name)

    def send(
        self,
        message: object,
        *,
        headers: object = None,
        delay: Span | None = None,
        visible_at: datetime | None = None,
        group: str | None = None,
        deduplication_id: str | None = None,
        idempotent: bool = False,
    ) -> SendResult:
        """Send one message: a value that becomes JSON, or JsonText. Sends at the same time share a stream.

        With a deduplication id, or with `idempotent`, which makes one, the call is repeated after failures whose
        outcome is unknown, and the message is stored once all the same.
        """
        given = described(message, headers, delay, visible_at, group, deduplication_id)
        written = outgoing(message_pb2.OutgoingMessage(), given, self._client.json, idempotent=idempotent)
        return lane.send(self._client, self.name, written)

    def send_batch(self, messages: Iterable[object], *, idempotent: bool = False) -> list[SendResult]:
        """Send 1 to 1,000 messages in order, all or none: values, or OutgoingMessage where there is more to say."""
        written = batch(messages, self._client.json, idempotent=idempotent)
        sent = contract.SendBatchRequest(queue=self.name, messages=written)
        reply = self._client.call(self._client.raw.queue.SendBatch, sent, repeat=may_repeat(written))
        return [SendResult(each.msg_id, each.deduplicated) for each in reply.results]

    def producer(self, *, idempotent: bool = False, max_outstanding: int = 1000) -> Producer:
        """Make a stream on which many callers send at once. `idempotent` gives each message a deduplication id."""
        return Producer(self._client, self.name, idempotent=idempotent, max_outstanding=max_outstanding)

    def read(
        self,
        max_messages: int = 1,
        *,
        visibility_timeout: Span | None = None,
        wait: Span | None = None,
        ordering: Ordering | None = None,
        conditional: object = None,
    ) -> list[Message]:
        """Read up to so many visible messages, and wait up to `wait` for the first one.

        `conditional` is a value, or JsonText, that bodies must contain.
        """
        asked = request(
            contract.ReadBatchRequest,
            queue=self.name,
            max_messages=max_messages,
            visibility_timeout=visibility_timeout,
            wait=wait,
            ordering=ordering,
            conditional=self._text(conditional),
        )
        patience = 0 if wait is None else seconds(wait)
        reply = self._client.call(self._client.raw.queue.ReadBatch, asked, patience=patience)
        return [self._message(raw) for raw in reply.messages]

    def pop(self, max_messages: int = 1) -> list[Message]:
        """Read and delete in one step: what a lost reply held is lost."""
        asked = contract.PopRequest(queue=self.name, max_messages=max_messages)
        reply = self._client.call(self._client.raw.queue.Pop, asked)
        return [self._message(raw) for raw in reply.messages]

    def consume(
        self,
        *,
        max_in_flight: int = 100,
        visibility_timeout: Span | None = None,
        ordering: Ordering | None = None,
        conditional: object = None,
        auto_extend: bool = True,
        max_extension: Span | None = None,
        heartbeat_interval: Span | None = None,
    ) -> Consumer:
        """Stream the messages of the queue, at most `max_in_flight` of them unsettled. See Consumer."""
        start = request(
            contract.ConsumeStart,
            queue=self.name,
            max_in_flight=max_in_flight,
            visibility_timeout=visibility_timeout,
            ordering=ordering,
            conditional=self._text(conditional),
            auto_extend=auto_extend,
            max_extension=max_extension,
            heartbeat_interval=heartbeat_interval,
        )
        return Consumer(self._client, start)

    def watch(self, *, heartbeat_interval: Span | None = None) -> Watcher:
        """Stream what happens to the queue, without reading from it."""
        return self._client.watch([self.name], heartbeat_interval=heartbeat_interval)

    def delete(self, items: Items) -> list[Outcome]:
        """Delete messages: by messages or receipts what the caller still holds, by ids whoever holds it."""
        return self._settle(self._client.raw.queue.Delete, contract.DeleteRequest(queue=self.name), items)

    def archive(self, items: Items) -> list[Outcome]:
        """Move messages, named as for `delete`, to the archive."""
        return self._settle(self._client.raw.queue.Archive, contract.ArchiveRequest(queue=self.name), items)

    def release(self, items: Items, delay: Span | None = None) -> list[Outcome]:
        """Give messages or receipts back, after `delay`, or without one as the queue's policy says, or at once."""
        asked = request(contract.ReleaseRequest, queue=self.name, delay=delay)
        return self._settle(self._client.raw.queue.Release, asked, items)

    def dead_letter(self, items: Items, reason: str = "") -> list[Outcome]:
        """Move messages or receipts to the dead-letter queue of the queue's policy."""
        asked = contract.DeadLetterRequest(queue=self.name, reason=reason)
        return self._settle(self._client.raw.queue.DeadLetter, asked, items)

    def set_visibility_timeout(
        self, items: Items, visibility_timeout: Span | None = None, *, visible_at: datetime | None = None
    ) -> list[Outcome]:
        """Set when messages, named as for `delete`, become visible: after a span from now, or at a moment."""
        span = {"visibility_timeout": visibility_timeout, "visible_at": visible_at}
        asked = settling(request(contract.SetVisibilityTimeoutRequest, queue=self.name, **span), items_of(items))
        return outcomes((self._client.call(self._client.raw.queue.SetVisibilityTimeout, asked)).results)

    def _settle(self, method: io.UnaryMethod[Any, Any], asked: Any, items: Items) -> list[Outcome]:
        given = items_of(items)
        reply = self._client.call(method, settling(asked, given), repeat=True)
        return outcomes(reply.results, given)

    def settle(
        self, action: SettleAction | Literal["EXTEND", "GIVE_BACK"], span: Span | None, reason: str, items: Items
    ) -> list[Outcome]:
        """Do with messages what `action` says; `span` is the delay of RELEASE, or the timeout of EXTEND.

        No unary call gives back uncounted; the next best is to release at once.
        """
        match action:
            case "DELETE":
                return self.delete(items)
            case "ARCHIVE":
                return self.archive(items)
            case "RELEASE":
                return self.release(items, span)
            case "GIVE_BACK":
                return self.release(items, 0)
            case "DEAD_LETTER":
                return self.dead_letter(items, reason)
        if span is None:
            found = [item.visibility_timeout for item in items_of(items) if isinstance(item, Message)]
            span = max(found, default=timedelta(seconds=30))
        return self.set_visibility_timeout(items, span)

    def settle_one(
        self, message: Message, action: SettleAction, *, delay: Span | None = None, reason: str = ""
    ) -> Outcome:
        """Settle a message, as its own methods do."""
        return (self.settle(action, delay, reason, message))[0]

    def extend_one(self, message: Message, visibility_timeout: Span | None) -> Outcome:
        """Keep a message invisible, as its own method does."""
        return (self.settle("EXTEND", visibility_timeout, "", message))[0]

    def list_messages(
        self, *, state: MessageState | None = None, msg_ids: Iterable[int] = (), page_size: int = 0
    ) -> Iterator[Message]:
        """List messages by id, without reading them: they get no receipt."""
        asked = request(admin.ListMessagesRequest, queue=self.name, state=state, msg_ids=msg_ids, page_size=page_size)
        for page in self._client.pages(self._client.raw.admin.ListMessages, asked):
            for raw in page.messages:
                yield self._message(raw)

    def list_archived_messages(
        self,
        *,
        msg_ids: Iterable[int] = (),
        archived_after: datetime | None = None,
        archived_before: datetime | None = None,
        page_size: int = 0,
    ) -> Iterator[ArchivedMessage]:
        """List messages of the archive by id: those that meet all conditions."""
        asked = request(
            admin.ListArchivedMessagesRequest,
            queue=self.name,
            filter=_filter(msg_ids, archived_after, archived_before),
            page_size=page_size,
        )
        for page in self._client.pages(self._client.raw.admin.ListArchivedMessages, asked):
            for each in page.messages:
                yield ArchivedMessage(self._message(each.message), moment(each.archived_at))

    def delete_archived_messages(
        self,
        *,
        msg_ids: Iterable[int] = (),
        archived_after: datetime | None = None,
        archived_before: datetime | None = None,
        max_messages: int = 0,
    ) -> ArchiveDeletion:
        """Delete messages of the archive for good: those that meet all conditions; without any, the whole archive."""
        asked = request(
            admin.DeleteArchivedMessagesRequest,
            queue=self.name,
            filter=_filter(msg_ids, archived_after, archived_before),
            max_messages=max_messages,
        )
        return result(ArchiveDeletion, self._client.call(self._client.raw.admin.DeleteArchivedMessages, asked))

    def replay(
        self,
        *,
        msg_ids: Iterable[int] = (),
        archived_after: datetime | None = None,
        archived_before: datetime | None = None,
        target_queue: str = "",
        max_messages: int = 0,
    ) -> Replay:
        """Move messages of the archive, chosen as for `delete_archived_messages`, back into this queue or another."""
        asked = request(
            admin.ReplayArchivedMessagesRequest,
            queue=self.name,
            filter=_filter(msg_ids, archived_after, archived_before),
            target_queue=target_queue,
            max_messages=max_messages,
        )
        return result(Replay, self._client.call(self._client.raw.admin.ReplayArchivedMessages, asked))

    def redrive(self, *, msg_ids: Iterable[int] = (), target_queue: str = "", max_messages: int = 0) -> Redrive:
        """Move the messages of this dead-letter queue back to where they came from, or to another queue."""
        asked = request(
            admin.RedriveMessagesRequest,
            dead_letter_queue=self.name,
            msg_ids=msg_ids,
            target_queue=target_queue,
            max_messages=max_messages,
        )
        return result(Redrive, self._client.call(self._client.raw.admin.RedriveMessages, asked))

    def _text(self, conditional: object) -> str | None:
        return None if conditional is None else text_of(self._client.json, conditional)

    def _message(self, raw: message_pb2.Message) -> Message:
        return Message(self.name, raw, self._client.json, self)


def _filter(
    msg_ids: Iterable[int], archived_after: datetime | None, archived_before: datetime | None
) -> admin.ArchiveFilter:
    return request(admin.ArchiveFilter, msg_ids=msg_ids, archived_after=archived_after, archived_before=archived_before)
