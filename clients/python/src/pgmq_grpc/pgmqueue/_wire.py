"""Calls of the contract by their requests alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.descriptor_pb2 import MethodOptions

from pgmq_grpc._async import lane as async_lane
from pgmq_grpc._options import backoff
from pgmq_grpc._sync import lane
from pgmq_grpc.v1 import admin_service_pb2, message_pb2, queue_service_pb2, topic_service_pb2, transaction_service_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message as Request

    from pgmq_grpc import AsyncClient, Client, PgmqError

_AN_HOUR = 3_600.0
_LONG = ("CreateFifoIndex", "ConvertArchivePartitioned")


@dataclass(frozen=True)
class Method:
    """How a request is called: by which stub and name, and as which command of a transaction, if it can be one."""

    stub: str
    name: str
    command: str
    may_repeat: bool

    def of(self, client: AsyncClient | Client) -> Any:
        """Give the callable of a client's stubs."""
        return getattr(getattr(client.raw, self.stub), self.name)

    def patience(self, request: Any) -> float:
        """Give the seconds that a call may take on top of the client's deadline."""
        if self.name in _LONG:
            return _AN_HOUR
        return float(request.wait.ToTimedelta().total_seconds()) if self.name == "ReadBatch" else 0.0


def _methods() -> dict[str, Method]:
    commands = transaction_service_pb2.OpenTransactionRequest.DESCRIPTOR.oneofs_by_name["command"].fields
    command_of = {field.message_type.full_name: field.name for field in commands if field.message_type}
    services = {
        "queue": queue_service_pb2.DESCRIPTOR.services_by_name["QueueService"],
        "topic": topic_service_pb2.DESCRIPTOR.services_by_name["TopicService"],
        "admin": admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"],
    }
    return {
        method.input_type.full_name: Method(
            stub=stub,
            name=method.name,
            command=command_of.get(method.input_type.full_name, ""),
            may_repeat=method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN,
        )
        for stub, service in services.items()
        for method in service.methods
    }


_METHODS = _methods()


def method_of(request: Request) -> Method:
    """Give the method that takes a request."""
    return _METHODS[request.DESCRIPTOR.full_name]


def _outgoing(request: queue_service_pb2.SendRequest) -> message_pb2.OutgoingMessage:
    return message_pb2.OutgoingMessage(
        **{field.name: value for field, value in request.ListFields() if field.name != "queue"}
    )


def call(client: Client, request: Request) -> Any:
    """Make a call of its own; sends at the same time share a stream."""
    if isinstance(request, queue_service_pb2.SendRequest):
        return lane.send(client, request.queue, _outgoing(request))
    method = method_of(request)
    return client.call(method.of(client), request, repeat=method.may_repeat, patience=method.patience(request))


async def async_call(client: AsyncClient, request: Request) -> Any:
    """Make a call of its own; sends at the same time share a stream."""
    if isinstance(request, queue_service_pb2.SendRequest):
        return await async_lane.send(client, request.queue, _outgoing(request))
    method = method_of(request)
    return await client.call(method.of(client), request, repeat=method.may_repeat, patience=method.patience(request))


class Opening:
    """The tries to open a transaction, for as long as a pool waits for a connection. One that failed did nothing."""

    def __init__(self, timeout: float) -> None:
        self._end = time.monotonic() + timeout
        self._failures = 0

    def pause_after(self, error: PgmqError) -> float:
        """Give the pause before the next try; raises the error when there is to be none."""
        self._failures += 1
        pause = backoff(self._failures, error)
        if error.code is not grpc.StatusCode.UNAVAILABLE or time.monotonic() + pause >= self._end:
            raise error
        return pause
