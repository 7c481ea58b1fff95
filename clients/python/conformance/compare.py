"""Compares what came back with what a case expects."""

from __future__ import annotations

import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any


class Mismatch(Exception):  # noqa: N818 - it is no error of the program
    """What came back is not what was expected."""


def compare(expected: Any, actual: Any, path: str = "it") -> None:
    """Raises `Mismatch` where `actual` does not fit `expected`."""
    if isinstance(expected, dict):
        if len(expected) == 1 and next(iter(expected)).startswith("$"):
            ((matcher, argument),) = expected.items()
            _matcher(matcher)(argument, actual, path)
            return
        _check(isinstance(actual, dict), path, expected, actual)
        for key, value in expected.items():
            compare(value, actual.get(key), f"{path}.{key}")
        return
    if isinstance(expected, list):
        _check(isinstance(actual, list) and len(actual) == len(expected), path, expected, actual)
        for index, value in enumerate(expected):
            compare(value, actual[index], f"{path}.{index}")
        return
    if expected == "$any":
        _check(not _absent(actual), path, "something", actual)
    elif expected == "$absent":
        _check(_absent(actual), path, "nothing", actual)
    else:
        # True is 1 in Python, and in no case.
        _check(expected == actual and isinstance(expected, bool) == isinstance(actual, bool), path, expected, actual)


def fits(expected: Any, actual: Any) -> bool:
    """Whether `compare` has nothing to say."""
    try:
        compare(expected, actual)
    except Mismatch:
        return False
    return True


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def _check(holds: bool, path: str, expected: Any, actual: Any) -> None:
    if not holds:
        raise Mismatch(f"{path} is {_short(actual)}, expected {_short(expected)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 500 else f"{text[:500]}…"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


def _at_least(bound: float, actual: Any, path: str) -> None:
    _check(_number(actual) and actual >= bound, path, f"at least {bound}", actual)


def _at_most(bound: float, actual: Any, path: str) -> None:
    _check(_number(actual) and actual <= bound, path, f"at most {bound}", actual)


def _in_seconds(bounds: list[float], actual: Any, path: str) -> None:
    start, end = bounds
    from_now = actual - time.time() if _number(actual) else None
    _check(from_now is not None and start <= from_now <= end, path, f"in {start} to {end} seconds", from_now)


def _unordered(wanted: list[Any], actual: Any, path: str) -> None:
    _check(isinstance(actual, list) and len(actual) == len(wanted), path, wanted, actual)
    left = list(actual)
    for element in wanted:
        found = next((index for index, value in enumerate(left) if fits(element, value)), None)
        if found is None:
            raise Mismatch(f"{path} has no {_short(element)} among {_short(left)}")
        del left[found]


def _length(wanted: int, actual: Any, path: str) -> None:
    _check(isinstance(actual, (str, list)) and len(actual) == wanted, path, f"of length {wanted}", actual)


def _contains(wanted: Any, actual: Any, path: str) -> None:
    holds = (isinstance(actual, str) and wanted in actual) or (
        isinstance(actual, list) and any(fits(wanted, element) for element in actual)
    )
    _check(holds, path, f"something that holds {wanted!r}", actual)


def _not(unwanted: Any, actual: Any, path: str) -> None:
    _check(not fits(unwanted, actual), path, f"anything but {_short(unwanted)}", actual)


_MATCHERS: dict[str, Callable[[Any, Any, str], None]] = {
    "$at_least": _at_least,
    "$at_most": _at_most,
    "$in_seconds": _in_seconds,
    "$unordered": _unordered,
    "$length": _length,
    "$contains": _contains,
    "$not": _not,
}


def _matcher(name: str) -> Callable[[Any, Any, str], None]:
    if name not in _MATCHERS:
        raise Mismatch(f"there is no matcher {name}")
    return _MATCHERS[name]
