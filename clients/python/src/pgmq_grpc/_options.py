"""How a client reaches its server, and how often it tries."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from pgmq_grpc._errors import PgmqError
from pgmq_grpc._json import ExactJson, JsonLibrary

if TYPE_CHECKING:
    from pathlib import Path

Metadata = Mapping[str, str] | Callable[[], Mapping[str, str]]
"""Metadata of each call, such as credentials: a mapping, or a function that is asked before each call."""

_DEFAULT_TARGET = "127.0.0.1:50051"
_ATTEMPTS = 4

# What gRPC takes as a key and as a value of metadata.
_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[ -~]*")
# Of what other forms there are, gRPC knows more than is known here.
_OTHER_TARGETS = ("unix:", "unix-abstract:", "vsock:", "ipv4:", "ipv6:", "xds:")
_ADDRESS = re.compile(r"(?:dns:(?://[^/]*/)?)?(?:\[[^\[\]]+\]|[^:/\[\]\s]+):(\d{1,5})")


@dataclass(frozen=True)
class Tls:
    """An encrypted connection: the server's CA instead of the system's roots, and a certificate of the client's own."""

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files."""
        return grpc.ssl_channel_credentials(*(_read(path) for path in (self.ca, self.key, self.certificate)))


@dataclass(frozen=True)
class Options:
    """What a client was told when it was made."""

    target: str
    credentials: grpc.ChannelCredentials | None
    name: str
    metadata: Metadata
    timeout: float
    json: JsonLibrary
    channel_options: tuple[tuple[str, object], ...]
    timeout_given: bool = False

    @classmethod
    def of(
        cls,
        target: str | None,
        tls: bool | Tls | grpc.ChannelCredentials,
        name: str,
        metadata: Metadata | None,
        timeout: float,
        json: JsonLibrary | None,
        channel_options: Mapping[str, object] | None,
    ) -> Options:
        """Fill in what was left open."""
        credentials: grpc.ChannelCredentials | None
        if isinstance(tls, bool):
            credentials = Tls().credentials() if tls else None
        else:
            credentials = tls.credentials() if isinstance(tls, Tls) else tls
        target = target or os.environ.get("PGMQ_GRPC_TARGET") or _DEFAULT_TARGET
        _check_target(target)
        # A path is no authority: the server's HTTP/2 would refuse the call.
        authority = {"grpc.default_authority": "localhost"} if target.startswith("unix:") else {}
        options: dict[str, object] = {
            # Replies stay below 4 MiB; this leaves room for those of newer servers.
            "grpc.max_receive_message_length": 16 << 20,
            # A server that comes back is to be found soon.
            "grpc.initial_reconnect_backoff_ms": 100,
            "grpc.min_reconnect_backoff_ms": 100,
            "grpc.max_reconnect_backoff_ms": 3000,
            # A connection of its own: a process that was forked must not share its parent's.
            "grpc.use_local_subchannel_pool": 1,
            **authority,
            **(channel_options or {}),
        }
        if name:
            _check_metadata("pgmq-client", name)
        if isinstance(metadata, Mapping):
            for pair in metadata.items():
                _check_metadata(*pair)
        return cls(
            target=target,
            credentials=credentials,
            name=name,
            metadata=metadata or {},
            timeout=timeout,
            json=json or ExactJson(),
            channel_options=tuple(options.items()),
        )

    def call_metadata(self) -> tuple[tuple[str, str], ...]:
        """Give the metadata of one call."""
        given = self.metadata() if callable(self.metadata) else self.metadata
        name = (("pgmq-client", self.name),) if self.name else ()
        if not given:
            return name
        if callable(self.metadata):
            try:
                for pair in given.items():
                    _check_metadata(*pair)
            except ValueError as error:
                raise PgmqError(grpc.StatusCode.INVALID_ARGUMENT, str(error), outcome_unknown=False) from None
        return (*name, *given.items())


class Attempts:
    """The tries of one call: how much time is left, and whether and when to try again."""

    def __init__(self, timeout: float, *, repeatable: bool) -> None:
        self._deadline = time.monotonic() + timeout
        self._repeatable = repeatable
        self._failed = 0

    def remaining(self) -> float:
        """Give the time that is left, in seconds."""
        return max(self._deadline - time.monotonic(), 0.001)

    def pause_after(self, error: PgmqError) -> float | None:
        """Give the pause before the next try, or None when there is to be none.

        UNAVAILABLE from the server itself says that a repeat is safe, and so it is when the call has not left.
        """
        self._failed += 1
        safe = error.may_repeat or self._repeatable or not error.outcome_unknown
        if error.code is not grpc.StatusCode.UNAVAILABLE or not safe or self._failed >= _ATTEMPTS:
            return None
        pause = backoff(self._failed, error)
        return pause if pause < self.remaining() else None


def backoff(failures: int, error: Exception | None, longest: float = 2.0) -> float:
    """Give a pause that grows with the failures, with jitter, and is not shorter than what the server asks for."""
    pause = float(min(longest, 0.1 * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1))  # noqa: S311
    asked = error.retry_delay if isinstance(error, PgmqError) else None
    return max(pause, asked.total_seconds() if asked else 0)


def _check_target(target: str) -> None:
    """Refuse what gRPC would connect to at a port that nobody has named."""
    if target.startswith(_OTHER_TARGETS):
        return
    address = _ADDRESS.fullmatch(target)
    if address is None or not 0 < int(address[1]) < 1 << 16:
        raise ValueError(f"{target!r} is no target: a target is host:port, unix:/path or dns:///name:port")


def _check_metadata(key: object, value: object) -> None:
    """Refuse what gRPC cannot send."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key of metadata: they have lowercase letters, digits and _ . -")
    if isinstance(value, bytes) and key.endswith("-bin"):
        return
    # Not the value: it may be secret.
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise ValueError(f"the metadata {key!r} has a value that is no text of printable ASCII")


def _read(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()


_first: dict[str, int] = {}


def first_user() -> int:
    """Give the process that has used gRPC first, of this one and those that it was forked from.

    In the others gRPC for asyncio must not be used: now and then it waits there for ever.
    """
    return _first.setdefault("process", os.getpid())
