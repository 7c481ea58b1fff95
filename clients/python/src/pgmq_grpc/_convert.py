"""Between the contract's messages and Python's values, by the descriptors of the messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from pgmq_grpc._errors import PgmqError
from pgmq_grpc.v1.error_pb2 import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import EnumDescriptor
    from google.protobuf.message import Message as Proto

Span = timedelta | float
"""A span of time: a timedelta, or seconds."""

P = TypeVar("P", bound="Proto")
D = TypeVar("D")

_mirrors: dict[str, type[Any]] = {}

_A_YEAR = 365 * 86400.0


def mirrors(name: str) -> Callable[[type[D]], type[D]]:
    """Declare that a dataclass has the fields of a message of the contract, or some of them."""

    def declare(kind: type[D]) -> type[D]:
        _mirrors[f"pgmq.v1.{name}"] = kind
        return kind

    return declare


def seconds(span: Span) -> float:
    """Give a span in seconds."""
    return span.total_seconds() if isinstance(span, timedelta) else float(span)


def limit(span: Span, what: str = "timeout") -> float:
    """Give in seconds how long something may take. A year is as good as for ever, and no clock fails at it."""
    given = seconds(span)
    # Nothing is true of what is no number.
    if not given >= 0:
        raise ValueError(f"{what} is {span!r}: it cannot be negative, and has to be a number")
    return min(given, _A_YEAR)


def duration(span: Span) -> Duration:
    """Give a span as the contract wants it."""
    result = Duration()
    if isinstance(span, timedelta):
        result.FromTimedelta(span)
    else:
        result.FromNanoseconds(round(span * 1_000_000_000))
    return result


def timestamp(moment: datetime) -> Timestamp:
    """Give a moment as the contract wants it. One without a time zone is refused: it names no moment."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone")
    result = Timestamp()
    result.FromDatetime(moment.astimezone(timezone.utc))
    return result


def moment(value: Timestamp) -> datetime:
    """Give a moment as a datetime of UTC."""
    return value.ToDatetime(tzinfo=timezone.utc)


def request(kind: type[P], /, **values: object) -> P:
    """Build a message of the contract of those values that are not None."""
    message = kind()
    by_name = message.DESCRIPTOR.fields_by_name
    for name, value in values.items():
        if value is not None:
            _refuse_second(message, by_name[name])
            _set(message, by_name[name], value)
    return message


def result(kind: type[D], message: Any) -> D:
    """Build a dataclass of the message that it mirrors."""
    by_name = message.DESCRIPTOR.fields_by_name
    names = [field.name for field in fields(cast("Any", kind))]
    return kind(**{name: _get(message, by_name[name]) for name in names})


def word(kind: EnumDescriptor, number: int) -> str | None:
    """Give an enumeration's word without its prefix: None for the unspecified one, the number for an unknown one."""
    value = kind.values_by_number.get(number)
    if value is None:
        return str(number)
    return value.name.removeprefix(_prefix(kind)) if number else None


@cache
def _prefix(kind: EnumDescriptor) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.name).upper() + "_"


def _number(kind: EnumDescriptor, value: object) -> int:
    if isinstance(value, int):
        return value
    known = kind.values_by_name.get(f"{_prefix(kind)}{value}")
    if known is None:
        words = ", ".join(str(word(kind, number)) for number in kind.values_by_number if number)
        raise ValueError(f"{value!r} is none of {words}")
    return known.number


def _refuse_second(message: Proto, field: Any) -> None:
    """Refuse two values where one is meant: the server would see the last one only."""
    choice = field.containing_oneof
    first = message.WhichOneof(choice.name) if choice is not None else None
    if first is not None:
        raise ValueError(f"{first} and {field.name} exclude each other")


def _set(message: Proto, field: Any, value: object) -> None:
    if field.is_repeated:
        getattr(message, field.name).extend(cast("Iterable[object]", value))
    elif field.enum_type is not None:
        setattr(message, field.name, _number(field.enum_type, value))
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(_message(field, value))
    else:
        setattr(message, field.name, value)


def _message(field: Any, value: object) -> Proto:
    match field.message_type.full_name:
        case "google.protobuf.Duration":
            return duration(cast("Span", value))
        case "google.protobuf.Timestamp":
            return timestamp(cast("datetime", value))
        case "google.protobuf.FieldMask":
            return FieldMask(paths=cast("Iterable[str]", value))
    kind = cast("type[Proto]", field.message_type._concrete_class)  # noqa: SLF001
    if is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in fields(value)}
    return request(kind, **value) if isinstance(value, Mapping) else cast("Proto", value)


def _get(message: Proto, field: Any) -> object:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_plain(field, each) for each in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _plain(field, value)


def _plain(field: Any, value: Any) -> object:
    if field.enum_type is not None:
        return word(field.enum_type, value)
    if isinstance(value, Duration):
        return value.ToTimedelta()
    if isinstance(value, Timestamp):
        return moment(value)
    if isinstance(value, CommandError):
        return PgmqError.from_command(value)
    if field.message_type is not None:
        return result(_mirrors[field.message_type.full_name], value)
    return value
