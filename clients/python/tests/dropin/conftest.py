"""Fixtures: the drop-ins as a program makes them, connected by PGMQ_GRPC_TARGET."""

from pathlib import Path

import pytest

from pgmq_grpc.pgmqueue import AsyncPGMQueue, PGMQueue

POSTGRES = ("DATABASE_URL", "PG_HOST", "PG_PORT", "PG_DATABASE", "PG_USERNAME", "PG_PASSWORD")

SEEDS = Path(__file__).parents[5] / "shared" / "seeds"


def pytest_terminal_summary(terminalreporter):
    """Says aloud what could not be run."""
    if not SEEDS.is_dir():
        terminalreporter.write_line(f"!!! skipped: the documents' own programs, because {SEEDS} is not here", red=True)


@pytest.fixture(autouse=True)
def _no_postgres(monkeypatch):
    for variable in POSTGRES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def pgmq():
    with PGMQueue() as queue:
        yield queue


@pytest.fixture
async def async_pgmq():
    async with AsyncPGMQueue() as queue:
        yield queue
