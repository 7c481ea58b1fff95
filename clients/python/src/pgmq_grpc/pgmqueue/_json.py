"""JSON as pgmq-py reads and writes it: what ``json`` takes, and what ``orjson`` takes beyond that."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import date, datetime, time
from enum import Enum
from uuid import UUID


def encode(value: object) -> str:
    """Write a value as JSON text.

    Beside what ``json`` knows, dataclasses, moments, UUIDs and enumerations are written as orjson writes them, with
    which pgmq-py's asynchronous client sends. So is a number that JSON does not have, such as NaN, which is null.
    """
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_encode_other)
    except ValueError:
        return json.dumps(_without_nan(value), ensure_ascii=False, separators=(",", ":"), default=_encode_other)


def decode(text: str) -> object:
    """Read JSON text. A body that only plain SQL can write, SQL's NULL, comes as empty text and is None."""
    return json.loads(text) if text else None


def _encode_other(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def _without_nan(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return value
