"""Addresses, environment variables, loggers and listeners."""

import asyncio
import json
import logging
import os
import threading

import pytest

from pgmq_grpc import Client, PgmqError
from pgmq_grpc.compat.pgqrs import Admin
from pgmq_grpc.compat.tembo import PGMQueue as Tembo
from pgmq_grpc.pgmqueue import (
    AsyncNotificationListener,
    AsyncPGMQueue,
    LoggingManager,
    PGMQueue,
    SyncNotificationListener,
    create_logger,
    log_performance,
)
from pgmq_grpc.pgmqueue.logger import log_with_context

TARGET = os.environ["PGMQ_GRPC_TARGET"]
HOST, PORT = TARGET.rsplit(":", 1)


@pytest.mark.parametrize(
    ("arguments", "target"),
    [
        ({}, TARGET),
        ({"target": "unix:/run/q.sock"}, "unix:/run/q.sock"),
        ({"host": "queues", "port": 5000}, "queues:5000"),
        ({"host": "queues"}, "queues:50051"),
        ({"port": "5000"}, "localhost:5000"),
        ({"host": "::1"}, "[::1]:50051"),
    ],
)
def test_the_address_is_target_or_host_and_port_or_the_environment_s(arguments, target):
    for kind in (PGMQueue, AsyncPGMQueue, Tembo):
        queue = kind(**arguments)
        assert target in (queue.target, getattr(queue, "_queue", queue).target)


def test_without_any_address_it_is_the_usual_one_unless_the_environment_leads_to_postgres(monkeypatch):
    monkeypatch.delenv("PGMQ_GRPC_TARGET")
    assert PGMQueue().target == "127.0.0.1:50051"
    monkeypatch.setenv("PG_HOST", "db")
    with pytest.raises(ValueError, match="PG_HOST of the environment"):
        PGMQueue()
    assert PGMQueue("queues:1").target == "queues:1"
    monkeypatch.setenv("DATABASE_URL", "postgresql://db/postgres")
    with pytest.raises(ValueError, match="DATABASE_URL, PG_HOST"):
        AsyncPGMQueue()
    monkeypatch.setenv("PGMQ_GRPC_TARGET", "queues:2")
    assert PGMQueue().target == "queues:2"


@pytest.mark.parametrize("address", ["postgresql://postgres@db/postgres", "postgres://db", "host=db dbname=postgres"])
def test_a_connection_string_of_postgres_is_an_error(address):
    for kind in (PGMQueue, AsyncPGMQueue, Tembo, Admin):
        with pytest.raises(ValueError, match="connection string of Postgres"):
            kind(address)


def test_a_target_and_a_host_exclude_each_other():
    with pytest.raises(ValueError, match="not both"):
        PGMQueue(TARGET, host=HOST)


def test_what_only_postgres_needs_has_no_effect_and_says_so(name):
    with pytest.warns(UserWarning, match="database, username, password"):
        queue = PGMQueue(host=HOST, port=PORT, database="postgres", username="postgres", password="secret")  # noqa: S106
    assert queue.send(name, 1) == 1
    assert "secret" not in repr(queue)
    queue.close()


def test_a_client_of_another_making_is_used_and_stays_open(name):
    with Client(TARGET, name="theirs") as client:
        with PGMQueue(client=client) as queue:
            queue.send(name, 1)
        assert client.queue(name).pop()[0].message == 1


def test_the_visibility_timeout_of_the_object_counts_where_none_is_given(name):
    with PGMQueue(vt=120) as queue:
        queue.send(name, 1)
        message = queue.read(name)
        assert round((message.vt - message.last_read_at).total_seconds()) == 120


@pytest.fixture
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LoggingManager, "_loggers", {})
    yield
    for logger in LoggingManager._loggers.values():
        for handler in logger.handlers:
            handler.close()


@pytest.mark.usefixtures("_in_a_directory_of_its_own")
def test_a_verbose_object_logs_to_a_file_as_json_lines(tmp_path, name, capsys):
    with PGMQueue(verbose=True, structured_logging=True, log_filename="queue.jsonl") as queue:
        queue.send(name, {"secret": 1})
    lines = [json.loads(line) for line in (tmp_path / "queue.jsonl").read_text().splitlines()]
    assert {"message": "send", "queue": name, "level": "DEBUG"}.items() <= lines[-1].items()
    assert lines[0]["target"] == TARGET
    assert "secret" not in (tmp_path / "queue.jsonl").read_text()
    assert '"message": "send"' in capsys.readouterr().err


@pytest.mark.usefixtures("_in_a_directory_of_its_own")
def test_log_files_rotate_by_size_and_go_by_age(tmp_path):
    with PGMQueue(verbose=True, log_rotation=True, log_rotation_size="1 KB", log_retention="1 week") as queue:
        for number in range(40):
            log_with_context(queue.logger, "INFO", "x" * 100, number=number)
        files = sorted(tmp_path.glob("pgmq_*.log*"))
        assert len(files) > 3
        os.utime(files[-1], (0, 0))
        for number in range(40):
            log_with_context(queue.logger, "INFO", "x" * 100, number=number)
        assert min(file.stat().st_mtime for file in tmp_path.glob("pgmq_*.log*")) > 0
    with pytest.raises(ValueError, match="10 MB"):
        PGMQueue(verbose=True, log_rotation=True, log_rotation_size="much")


def test_an_object_is_silent_by_default(name, capfd):
    with PGMQueue() as queue:
        queue.send(name, 1)
        assert queue.logger.handlers == []
    assert capfd.readouterr() == ("", "")


async def test_performance_is_logged_of_plain_and_asynchronous_functions(caplog):
    logger = create_logger("pgmq_grpc.test")
    caplog.set_level(logging.DEBUG)

    @log_performance(logger)
    def plain():
        return 1

    @log_performance(logger)
    async def fails():
        raise KeyError("broken")

    assert plain() == 1
    with pytest.raises(KeyError):
        await fails()
    assert "Completed plain" in caplog.text
    assert "success=True" in caplog.text
    assert "Failed fails: 'broken'" in caplog.text


def test_a_listener_calls_back_for_what_is_sent(pgmq, name):
    listener = SyncNotificationListener(pgmq)
    told = []
    heard = threading.Event()

    def callback(payload):
        told.append(payload)
        heard.set()
        if len(told) == 2:
            listener.stop()

    thread = threading.Thread(target=listener.listen, args=(name, callback))
    thread.start()
    # What was sent before the listener listened is not told, so it is sent until it is.
    while not heard.wait(0.2):
        pgmq.send(name, 1)
    while thread.is_alive():
        pgmq.send(name, 2)
        thread.join(0.2)
    assert told == [{"event": "insert", "payload_empty": True}] * 2


def test_a_listener_returns_when_its_time_is_up_and_raises_for_a_missing_queue(pgmq, name):
    SyncNotificationListener(pgmq).listen(name, callback=print, timeout=0.2)
    with pytest.raises(PgmqError):
        SyncNotificationListener(pgmq).listen(f"{name}_missing", callback=print, timeout=10)


async def test_an_asynchronous_listener_goes_on_after_a_callback_that_failed(async_pgmq, name):
    listener = AsyncNotificationListener(async_pgmq)
    told = []

    async def callback(payload):
        told.append(payload)
        if len(told) == 1:
            raise KeyError
        listener.stop()

    listening = asyncio.create_task(listener.listen(name, callback))
    while not listening.done():
        await async_pgmq.send(name, 1)
        await asyncio.wait([listening], timeout=0.2)
    await listening
    assert told == [{"event": "insert", "payload_empty": True}] * 2
