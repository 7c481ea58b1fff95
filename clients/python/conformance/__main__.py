"""Runs the cases, and tells which of them fail: python conformance."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from cases import Case, Step, load
from compare import Mismatch, compare
from streams import Streams
from values import error
from words import call

from pgmq_grpc import AsyncClient, PgmqError

_CASES = Path(__file__).parents[2] / "conformance" / "cases"
_CASE_SECONDS = 120


async def main() -> list[tuple[bool, str]]:
    """Run the cases that were asked for, and tell which have passed."""
    results = []
    only = os.environ.get("CONFORMANCE_ONLY", "")
    async with AsyncClient() as client:
        for case in load(_CASES, f"p{secrets.token_hex(3)}_"):
            if only not in case.name:
                continue
            started = time.monotonic()
            fault = await _fault(client, case)
            results.append((fault is None, case.name))
            if fault is not None:
                _say(f"FAILED after {time.monotonic() - started:.1f} s: {case.name}\n    {fault}")
    return results


def report(results: list[tuple[bool, str]]) -> bool:
    """Write down what became of each case, and tell whether all have passed."""
    if path := os.environ.get("CONFORMANCE_RESULTS"):
        lines = [f"{'pass' if passed else 'fail'}\t{name}\n" for passed, name in results]
        Path(path).write_text("".join(lines), "utf-8")
    failed = sum(not passed for passed, _ in results)
    _say(f"{len(results) - failed} passed, {failed} failed")
    return bool(results) and not failed


async def _fault(client: AsyncClient, case: Case) -> str | None:
    """What is wrong with a case, if anything is."""
    streams = Streams()
    try:
        return await asyncio.wait_for(_run(client, streams, case), _CASE_SECONDS)
    except asyncio.TimeoutError:
        return f"it lasts longer than {_CASE_SECONDS} seconds"
    except Exception:  # noqa: BLE001 - whatever is wrong, it is wrong with this case
        return traceback.format_exc()
    finally:
        await streams.close()
        for name in [*case.queues, *case.names]:
            await _drop(client, name)


async def _drop(client: AsyncClient, name: str) -> None:
    try:
        await client.drop_queue(name)
    except PgmqError as failure:
        # Names of other things are no queues, and a case may have dropped its own.
        if failure.reason not in ("QUEUE_NOT_FOUND", "INVALID_QUEUE_NAME"):
            raise


async def _run(client: AsyncClient, streams: Streams, case: Case) -> str | None:
    for name, settings in sorted(case.queues.items()):
        await call(client, "create_queue", {"queue": name, **case.filled(settings)})
    for number, step in enumerate(case.steps, 1):
        fault = await _step(client, streams, case, step)
        if fault is not None:
            return f"step {number}, {step.do}: {fault}"
    return None


async def _step(client: AsyncClient, streams: Streams, case: Case, step: Step) -> str | None:
    """What is wrong with a step, if anything is."""
    if step.client is not None:
        client = case.filled(step.client)
    if step.deadline is not None:
        client = client.with_timeout(step.deadline)
    arguments = case.filled(step.arguments)
    came: Any
    try:
        if streams.has(step.do):
            came = await streams.do(client, step.do, arguments)
        else:
            came = await call(client, step.do, arguments)
    except PgmqError as failure:
        if step.error is None:
            return f"failed: {error(failure)}"
        return _difference(case.filled(step.error), error(failure))
    if step.error is not None:
        return f"did not fail, but gave {came!r}"
    if step.save is not None:
        case.saved[step.save] = came
    return _difference(case.filled(step.expect), came) if step.expects_value else None


def _difference(expected: Any, came: Any) -> str | None:
    try:
        compare(expected, came)
    except Mismatch as mismatch:
        return str(mismatch)
    return None


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(not report(asyncio.run(main())))
