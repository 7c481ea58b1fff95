"""Errors: what a failed call tells, in one exception."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

from pgmq_grpc.v1 import error_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message as Proto

_DOMAIN = "pgmq.v1"
_PREFIX = "ERROR_REASON_"
_CODES = {code.value[0]: code for code in grpc.StatusCode}

# With these reasons the server does not know whether the call was applied. All others mean that it was not.
_UNKNOWN = frozenset({"OUTCOME_UNKNOWN", "OUTCOME_UNKNOWN_RETRY_SAFE", "DEADLINE_EXCEEDED", "INTERNAL"})

# Of reasons that are newer than this client only the code is known.
_UNKNOWN_CODES = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DATA_LOSS,
    }
)

# What settles several messages has settled some of them, perhaps, when it fails with these.
UNDONE_IN_PART = frozenset({"QUEUE_BUSY", "REFUSED_BY_DATABASE"})

# What gRPC says of a call for which there was no connection: it has not left this process.
_NOT_SENT = (
    "failed to connect to all addresses",
    "DNS resolution failed",
    "Name resolution failure",
    "errors resolving",
)

# Opening a stream again does not help against these.
_LASTING = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)


class PgmqError(Exception):
    """A call that failed, or one message or command of a stream that did.

    Programs decide by `code` and `reason`; the text is for people.

    Attributes:
        code: The status code of gRPC.
        reason: The name of an `ErrorReason` of the contract without its prefix, such as "QUEUE_NOT_FOUND". Empty when
            the error does not come from the server itself, but from a proxy, the network or this process.
        message: A sentence for people.
        metadata: The values that belong to the reason, such as "queue" or "limit".
        field: The path of the refused field, such as "messages[17].headers", or None.
        request_id: The id under which the server's log has the call, or None.
        retry_delay: How long the server asks to wait before a repeat, or None.
        outcome_unknown: Whether the call may have been applied all the same.
    """

    # Where applications find it, for tracebacks.
    __module__ = "pgmq_grpc"

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        request_id: str | None = None,
        retry_delay: timedelta | None = None,
        outcome_unknown: bool = True,
    ) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.field = self.metadata.get("field")
        self.request_id = request_id
        self.retry_delay = retry_delay
        self.outcome_unknown = outcome_unknown

    def __str__(self) -> str:
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"{' '.join(filter(None, (self.code.name, self.reason)))}: {self.message}{request}"

    def __reduce__(self) -> tuple[object, ...]:
        """Let the error pass from process to process with all that it holds."""
        return (type(self), (self.code, self.message), self.__dict__)

    @property
    def is_temporary(self) -> bool:
        """Whether the same may succeed later, without anybody changing the request or the queue."""
        return self.code not in _LASTING

    @property
    def may_repeat(self) -> bool:
        """Whether the server says that the call may be repeated, whatever it was."""
        return self.code is grpc.StatusCode.UNAVAILABLE and bool(self.reason)

    @classmethod
    def from_rpc(cls, error: grpc.RpcError) -> PgmqError:
        """Read what a failed call brought: its status, the details of the status and the trailers."""
        call = cast("grpc.Call", error)
        trailers = {key: value for key, value in call.trailing_metadata() or () if value}
        info, request_id, retry_delay = error_details_pb2.ErrorInfo(), None, None
        for detail in _details(trailers.get("grpc-status-details-bin")):
            if isinstance(detail, error_details_pb2.ErrorInfo) and detail.domain == _DOMAIN:
                info = detail
            elif isinstance(detail, error_details_pb2.RequestInfo):
                request_id = detail.request_id
            elif isinstance(detail, error_details_pb2.RetryInfo):
                retry_delay = detail.retry_delay.ToTimedelta()
        pushback = _text(trailers.get("grpc-retry-pushback-ms"))
        if retry_delay is None and pushback is not None and pushback.isdecimal():
            retry_delay = timedelta(milliseconds=int(pushback))
        message = call.details() or ""
        code = call.code() or grpc.StatusCode.UNKNOWN
        return cls(
            code,
            message,
            reason=info.reason,
            metadata=info.metadata,
            request_id=request_id or _text(trailers.get("x-request-id")),
            retry_delay=retry_delay,
            outcome_unknown=_leaves_open(info.reason, code) if info.reason else not message.startswith(_NOT_SENT),
        )

    @classmethod
    def from_command(cls, error: error_pb2.CommandError) -> PgmqError:
        """Read a failure that stands inside a reply."""
        reason = _reason(error.reason)
        code = _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
        return cls(
            code,
            error.message,
            reason=reason,
            metadata=error.metadata,
            request_id=error.request_id or None,
            retry_delay=error.retry_delay.ToTimedelta() if error.HasField("retry_delay") else None,
            outcome_unknown=_leaves_open(reason, code),
        )


def _leaves_open(reason: str, code: grpc.StatusCode) -> bool:
    """Tell whether a call that failed for this reason may have been applied."""
    if _PREFIX + reason in error_pb2.ErrorReason.DESCRIPTOR.values_by_name:
        return reason in _UNKNOWN
    return code in _UNKNOWN_CODES


def _reason(number: error_pb2.ErrorReason.ValueType) -> str:
    known = error_pb2.ErrorReason.DESCRIPTOR.values_by_number.get(number)
    return known.name.removeprefix(_PREFIX) if known else str(number)


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _details(packed: str | bytes | None) -> list[Proto]:
    if not isinstance(packed, bytes):
        return []
    found: list[Proto] = []
    for detail in status_pb2.Status.FromString(packed).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RequestInfo, error_details_pb2.RetryInfo):
            unpacked = kind()
            if detail.Unpack(unpacked):
                found.append(unpacked)
    return found
