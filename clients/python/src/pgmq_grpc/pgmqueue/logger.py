"""Logging as pgmq-py has it: silent unless asked for, then to the standard error and to a file, as text or as JSON.

It is the standard library's ``logging`` alone, whether loguru is installed or not.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import logging.handlers
import re
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["LoggingManager", "PGMQLogger", "create_logger", "log_performance", "log_with_context"]

TEXT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
CONTEXT = "pgmq_context"

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SPANS = {
    "second": 1,
    "minute": 60,
    "hour": 3600,
    "day": 86_400,
    "week": 604_800,
    "month": 2_592_000,
    "year": 31_536_000,
}

P = ParamSpec("P")
R = TypeVar("R")


class LoggingManager:
    """Makes loggers, one for each way in which they are set up."""

    _loggers: ClassVar[dict[tuple[object, ...], logging.Logger]] = {}

    @classmethod
    def get_logger(
        cls,
        name: str,
        verbose: bool = False,
        log_filename: str | None = None,
        log_format: str | None = None,
        log_level: int | str | None = None,
        structured: bool = False,
        rotation: str | None = None,
        retention: str | None = None,
    ) -> logging.Logger:
        """Give the logger of a name.

        Without any setting it is the plain one, with neither handlers nor level of its own. `verbose` means DEBUG, and
        a file, by default ``pgmq_<moment>.log`` in the working directory. `structured` writes one JSON object a line.
        `rotation` is a size such as "10 MB", and `retention` the age such as "1 week" at which rotated files go.
        """
        settings = (verbose, log_filename, log_format, log_level, structured, rotation, retention)
        if not any(setting is not None and setting is not False for setting in settings):
            return logging.getLogger(name)
        key = (name, *settings)
        if key not in cls._loggers:
            cls._loggers[key] = cls._configured(*key)
        return cls._loggers[key]

    @staticmethod
    def _configured(
        name: str,
        verbose: bool,
        log_filename: str | None,
        log_format: str | None,
        log_level: int | str | None,
        structured: bool,
        rotation: str | None,
        retention: str | None,
    ) -> logging.Logger:
        level: int | str = logging.DEBUG if verbose else logging.WARNING
        if log_level is not None:
            level = log_level.upper() if isinstance(log_level, str) else log_level
        # One of its own, outside the tree: a second client with other settings shares neither level nor handlers.
        logger = logging.Logger(name, level)  # noqa: LOG001
        formatter = JsonFormatter() if structured and log_format is None else logging.Formatter(log_format or TEXT)
        handlers: list[logging.Handler] = [logging.StreamHandler()]
        if verbose or log_filename:
            moment = datetime.now(timezone.utc).astimezone()
            path = Path.cwd() / (log_filename or f"pgmq_{moment:%Y%m%d_%H%M%S}.log")
            handlers.append(_RotatingFileHandler(path, rotation, retention) if rotation else logging.FileHandler(path))
        for handler in handlers:
            handler.setFormatter(formatter)
            logger.addHandler(handler)
        return logger

    @staticmethod
    def configure_global_logging(
        log_level: int | str = logging.INFO, log_format: str | None = None, structured: bool = False
    ) -> None:
        """Let everything of this package log to the standard error."""
        root = logging.getLogger("pgmq_grpc")
        root.setLevel(log_level.upper() if isinstance(log_level, str) else log_level)
        if not any(type(handler) is logging.StreamHandler for handler in root.handlers):
            root.addHandler(logging.StreamHandler())
        for handler in root.handlers:
            handler.setFormatter(
                JsonFormatter() if structured and log_format is None else logging.Formatter(log_format or TEXT)
            )

    @staticmethod
    def log_with_context(logger: logging.Logger, level: int | str, message: str, **context: object) -> None:
        """Log a line with values, which stand behind the text, and as fields of their own when it is JSON."""
        number = getattr(logging, level.upper(), logging.INFO) if isinstance(level, str) else level
        if not logger.isEnabledFor(number):
            return
        text = " | ".join([message, *(f"{name}={value}" for name, value in context.items())])
        logger.log(number, "%s", text, extra={CONTEXT: (message, context)})


class JsonFormatter(logging.Formatter):
    """Writes a record as a JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the record, with the values that it was logged with."""
        message, context = getattr(record, CONTEXT, (record.getMessage(), {}))
        line = {
            "timestamp": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
            **context,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _RotatingFileHandler(logging.handlers.RotatingFileHandler):
    """Begins a new file when one is too large, and removes those that are too old."""

    def __init__(self, path: Path, rotation: str, retention: str | None) -> None:
        size, size_unit = _parse(rotation, _UNITS)
        super().__init__(path, maxBytes=size * size_unit, backupCount=1_000)
        self._retention: timedelta | None = None
        if retention:
            count, span = _parse(retention, _SPANS)
            self._retention = timedelta(seconds=count * span)

    def doRollover(self) -> None:  # noqa: N802 -- its name in the standard library
        super().doRollover()
        if self._retention is None:
            return
        oldest = time.time() - self._retention.total_seconds()
        path = Path(self.baseFilename)
        for old in path.parent.glob(f"{path.name}.*"):
            if old.stat().st_mtime < oldest:
                old.unlink(missing_ok=True)


def _parse(text: str, units: dict[str, int]) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d+)\s*([A-Za-z]+)\s*", text)
    unit = found[2].lower() if found else ""
    unit = unit if unit in units else unit.rstrip("s")
    if not found or unit not in units:
        raise ValueError(f"{text!r} is not a number and a unit, such as 10 MB or 1 week")
    return int(found[1]), units[unit]


def create_logger(name: str, verbose: bool = False, log_filename: str | None = None) -> logging.Logger:
    """Give a logger; see `LoggingManager.get_logger`."""
    return LoggingManager.get_logger(name, verbose=verbose, log_filename=log_filename)


log_with_context = LoggingManager.log_with_context


def log_performance(logger: logging.Logger) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function, plain or asynchronous, so that each call logs how long it took and whether it succeeded."""

    def finished(name: str, started: float, error: Exception | None = None) -> None:
        elapsed = round((time.perf_counter() - started) * 1_000, 2)
        if error is None:
            log_with_context(
                logger, logging.DEBUG, f"Completed {name}", function=name, elapsed_ms=elapsed, success=True
            )
            return
        text = f"Failed {name}: {error}"
        log_with_context(
            logger, logging.ERROR, text, function=name, elapsed_ms=elapsed, success=False, error=str(error)
        )

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = getattr(function, "__name__", repr(function))

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            started = time.perf_counter()
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                finished(name, started, error)
                raise
            finished(name, started)
            return result

        @functools.wraps(function)
        async def timed_coroutine(*args: P.args, **kwargs: P.kwargs) -> object:
            started = time.perf_counter()
            try:
                result = await cast("Coroutine[Any, Any, object]", function(*args, **kwargs))
            except Exception as error:
                finished(name, started, error)
                raise
            finished(name, started)
            return result

        return cast("Callable[P, R]", timed_coroutine) if inspect.iscoroutinefunction(function) else timed

    return decorate


PGMQLogger = LoggingManager
