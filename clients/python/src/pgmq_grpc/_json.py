"""JSON: values in, values out, and exact text where it is asked for."""

from __future__ import annotations

import json
import re
import secrets
from decimal import Decimal
from typing import Any, Protocol

# Nobody outside this process can know it, so no text in a message can hold it.
_MARK = f"decimal-{secrets.token_hex(16)}:"
_MARKED = re.compile(f'"{_MARK}([^"]*)"')


class JsonText(str):
    """JSON text that is sent as it is, where a value would be turned into text: `queue.send(JsonText("1.50"))`."""

    __slots__ = ()


class JsonLibrary(Protocol):
    """What a client needs of a JSON library: a module or an object with these functions, as `json` and `orjson` are."""

    def dumps(self, obj: Any, /) -> str | bytes:
        """Write a value as JSON."""

    def loads(self, s: str, /) -> Any:
        """Read a value from JSON."""


class ExactJson:
    """The standard library's `json`, without loss: a number with a point or an exponent is a `decimal.Decimal`.

    Whole numbers are `int` of any size. Values to be sent may hold `Decimal` and `float` alike. What is not JSON, such
    as NaN, is refused with a ValueError.
    """

    def __init__(self) -> None:
        self._encoder = json.JSONEncoder(
            ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=self._mark_decimal
        )
        self._decoder = json.JSONDecoder(parse_float=Decimal)

    def dumps(self, obj: Any, /) -> str:
        """Write a value as JSON, without blanks."""
        text = self._encoder.encode(obj)
        # The encoder of `json` has no way to write a number that it does not know, so a text marks its place.
        return _MARKED.sub(r"\1", text) if _MARK in text else text

    def loads(self, s: str, /) -> Any:
        """Read a value from JSON, with all digits."""
        return self._decoder.decode(s)

    @staticmethod
    def _mark_decimal(value: object) -> str:
        if isinstance(value, Decimal) and value.is_finite():
            return f"{_MARK}{value}"
        raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")


def text_of(library: JsonLibrary, value: object) -> str:
    """Write a value with a library; text that is to go as it is stays as it is."""
    if isinstance(value, JsonText):
        return value
    text = library.dumps(value)
    return text if isinstance(text, str) else text.decode()
