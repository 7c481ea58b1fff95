"""Fixtures: a client of the server at PGMQ_GRPC_TARGET, queues of each test's own, and a connection that can be cut."""

import uuid
from collections.abc import Iterator

import pytest
from harness import Proxy, server_with_postgres

from pgmq_grpc import AsyncClient, Client


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[tuple[str, dict[str, str]]]:
    """Another server, and how its Postgres is reached."""
    with server_with_postgres() as addresses:
        yield addresses


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    with Client(name="tests of Python") as client:
        yield client


@pytest.fixture
async def aio():
    async with AsyncClient() as client:
        yield client


@pytest.fixture
def name(client) -> Iterator[str]:
    name = f"py_{uuid.uuid4().hex[:16]}"
    client.create_queue(name)
    yield name
    for info in list(client.list_queues(prefix=name)):
        client.drop_queue(info.name)


@pytest.fixture
def queue(client, name):
    return client.queue(name)


def pytest_unconfigure(config):
    """Says the sum, as every client's tests do."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        failed = len(reporter.stats.get("failed", [])) + len(reporter.stats.get("error", []))
        print(f"{len(reporter.stats.get('passed', []))} passed, {failed} failed")
