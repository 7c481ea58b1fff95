# Made of _async/transaction.py by make_sync.py: change it there.
"""Several operations in one database transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pgmq_grpc._convert import request, result
from pgmq_grpc._requests import Items, batch, described, items_of, outcomes, outgoing, settling
from pgmq_grpc._types import Outcome, SendResult, TopicResult
from pgmq_grpc.v1 import queue_service_pb2 as contract
from pgmq_grpc.v1 import topic_service_pb2 as topic

if TYPE_CHECKING:
    from typing_extensions import Self

    from pgmq_grpc._convert import Span
    from pgmq_grpc._sync.client import Client

Result = SendResult | list[SendResult] | TopicResult | list[Outcome]


class Transaction:
    """Operations on one queue or many, all of them or none: gathered in a block, and applied at its end.

        with client.transact() as transaction:
            transaction.send("invoices", {"order": 7})
            transaction.delete("orders", message)

    If the block is left by an exception, nothing is done. When it ends well, `results` has one result for each
    operation, in their order. A receipt that is stale, or whose message is gone, undoes everything, as any error does.

    It is for one block, and applied once: what is asked of it afterwards is refused with a RuntimeError.
    """

    def __init__(self, client: Client, deduplication_id: str | None, *, idempotent: bool) -> None:
        self._client = client
        self._json = client.json
        name = deduplication_id or (uuid4().hex if idempotent else "")
        self._request = contract.TransactRequest(deduplication_id=name)
        self._readers: list[Callable[[Any], Result]] = []
        self.results: list[Result] = []
        """What the operations gave."""
        self._is_used = self._is_sealed = self._is_over = False
        self.deduplicated = False
        """Whether an earlier transaction of the same deduplication id is meant, and nothing was applied now."""

    def __enter__(self) -> Self:
        self._refuse(self._is_used or self._is_sealed)
        self._is_used = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._is_sealed = self._is_over = True
        elif not self._is_over:
            self.commit()

    def commit(self) -> list[Result]:
        """Apply the operations. The end of the block does it, unless it was done. It may be tried again if it fails."""
        self._refuse(self._is_over)
        self._is_used = self._is_sealed = True
        client, repeat = self._client, bool(self._request.deduplication_id)
        reply = client.call(client.raw.queue.Transact, self._request, repeat=repeat)
        self._is_over = True
        self.deduplicated = reply.deduplicated
        answers = (getattr(each, each.WhichOneof("result") or "send") for each in reply.results)
        self.results = [read(answer) for read, answer in zip(self._readers, answers, strict=True)]
        return self.results

    def send(
        self,
        queue: str,
        message: object,
        *,
        headers: object = None,
        delay: Span | None = None,
        visible_at: datetime | None = None,
        group: str | None = None,
        deduplication_id: str | None = None,
    ) -> None:
        """Send a message. Gives a SendResult."""
        given = described(message, headers, delay, visible_at, group, deduplication_id)
        sent = outgoing(contract.SendRequest(queue=queue), given, self._json, idempotent=False)
        self._add(lambda reply: result(SendResult, reply), send=sent)

    def send_batch(self, queue: str, messages: Iterable[object]) -> None:
        """Send several messages. Gives a list of SendResult."""
        sent = contract.SendBatchRequest(queue=queue, messages=batch(messages, self._json, idempotent=False))
        self._add(lambda reply: [result(SendResult, each) for each in reply.results], send_batch=sent)

    def send_topic(
        self,
        routing_key: str,
        message: object,
        *,
        headers: object = None,
        delay: Span | None = None,
        visible_at: datetime | None = None,
        group: str | None = None,
        deduplication_id: str | None = None,
        require_match: bool = False,
    ) -> None:
        """Send a message to all queues that match. Gives a TopicResult."""
        given = described(message, headers, delay, visible_at, group, deduplication_id)
        sent = topic.SendTopicRequest(routing_key=routing_key, require_match=require_match)
        sent = outgoing(sent, given, self._json, idempotent=False)
        self._add(lambda reply: result(TopicResult, reply), send_topic=sent)

    def delete(self, queue: str, items: Items) -> None:
        """Delete messages, receipts or ids. Gives outcomes."""
        self._settle(items, delete=settling(contract.DeleteRequest(queue=queue), items_of(items)))

    def archive(self, queue: str, items: Items) -> None:
        """Archive messages, receipts or ids. Gives outcomes."""
        self._settle(items, archive=settling(contract.ArchiveRequest(queue=queue), items_of(items)))

    def release(self, queue: str, items: Items, delay: Span | None = None) -> None:
        """Give messages or receipts back. Gives outcomes."""
        sent = request(contract.ReleaseRequest, queue=queue, delay=delay)
        self._settle(items, release=settling(sent, items_of(items)))

    def dead_letter(self, queue: str, items: Items, reason: str = "") -> None:
        """Move messages or receipts to the dead-letter queue. Gives outcomes."""
        sent = settling(contract.DeadLetterRequest(queue=queue, reason=reason), items_of(items))
        self._settle(items, dead_letter=sent)

    def set_visibility_timeout(
        self,
        queue: str,
        items: Items,
        visibility_timeout: Span | None = None,
        *,
        visible_at: datetime | None = None,
    ) -> None:
        """Set when messages, receipts or ids become visible. Gives outcomes."""
        span = {"visibility_timeout": visibility_timeout, "visible_at": visible_at}
        sent = settling(request(contract.SetVisibilityTimeoutRequest, queue=queue, **span), items_of(items))
        self._add(lambda reply: outcomes(reply.results), set_visibility_timeout=sent)

    def _settle(self, items: Items, **operation: Any) -> None:
        given = items_of(items)
        self._add(lambda reply: outcomes(reply.results, given), **operation)

    def _refuse(self, is_late: bool) -> None:
        if is_late:
            raise RuntimeError("a transaction is for one block and applied once: make another one")

    def _add(self, read: Callable[[Any], Result], **operation: Any) -> None:
        self._refuse(self._is_sealed)
        self._request.operations.append(contract.TransactOperation(**operation))
        self._readers.append(read)
