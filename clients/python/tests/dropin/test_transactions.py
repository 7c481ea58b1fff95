"""Transactions: the decorators, and connections that are passed on by hand."""

import threading

import pytest

from pgmq_grpc import PgmqError
from pgmq_grpc.compat.tembo import PGMQueue as Tembo
from pgmq_grpc.compat.tembo import transaction as tembo_transaction
from pgmq_grpc.pgmqueue import AsyncPGMQueue, PGMQueue, async_transaction, transaction


@transaction
def fill(queue, name, messages, fails=False, conn=None):
    """Creates a queue and sends to it."""
    queue.create_queue(name, conn=conn)
    # In a transaction too, a queue that is there stays as it is, and one that is not is no failure.
    queue.create_queue(name, unlogged=True, conn=conn)
    assert queue.drop_queue(f"{name}_missing", conn=conn) is False
    ids = [queue.send(name, message, conn=conn) for message in messages]
    message = queue.read(name, conn=conn)
    assert queue.metrics(name, conn=conn).queue_length == len(messages)
    assert queue.validate_routing_key("a.b", conn=conn)
    if fails:
        raise KeyError(name)
    queue.delete(name, message.msg_id, conn=conn)
    return ids


@transaction
def twice(queue, name, fails=False, conn=None):
    fill(queue, f"{name}_1", [1], conn=conn)
    fill(queue, f"{name}_2", [1, 2], fails=fails, conn=conn)


def lengths(queue, name):
    return {each.queue_name: each.queue_length for each in queue.metrics_all() if each.queue_name.startswith(name)}


def test_what_a_decorated_function_did_holds_when_it_returns(pgmq, name):
    assert fill.__name__ == "fill"
    assert fill(pgmq, f"{name}_1", ["a", "b"]) == [1, 2]
    assert lengths(pgmq, name) == {name: 0, f"{name}_1": 1}


def test_what_a_decorated_function_did_is_undone_when_it_raises(pgmq, name):
    with pytest.raises(KeyError):
        fill(pgmq, f"{name}_1", ["a", "b"], fails=True)
    assert lengths(pgmq, name) == {name: 0}


def test_decorated_functions_nest_as_one_transaction(pgmq, name):
    with pytest.raises(KeyError):
        twice(pgmq, name, fails=True)
    assert lengths(pgmq, name) == {name: 0}
    twice(pgmq, name)
    assert lengths(pgmq, name) == {name: 0, f"{name}_1": 0, f"{name}_2": 1}


def test_nothing_is_seen_before_the_end_of_a_block(pgmq, name):
    with pgmq.pool.connection() as conn:
        with conn.transaction():
            pgmq.send(name, 1, conn=conn)
            assert pgmq.metrics(name).queue_length == 0
        assert pgmq.metrics(name).queue_length == 1
        pgmq.send(name, 2, conn=conn)
        assert pgmq.metrics(name).queue_length == 1
    assert pgmq.metrics(name).queue_length == 2


def test_a_message_that_was_read_is_visible_again_after_a_rollback(pgmq, name):
    pgmq.send(name, 1)
    with pytest.raises(KeyError), pgmq.pool.connection() as conn:
        assert pgmq.read(name, conn=conn).read_ct == 1
        raise KeyError
    assert pgmq.read(name).read_ct == 1


def test_a_connection_commits_and_rolls_back_by_its_methods(pgmq, name):
    conn = pgmq.pool.getconn()
    pgmq.send(name, 1, conn=conn)
    conn.commit()
    pgmq.send(name, 2, conn=conn)
    conn.rollback()
    pgmq.send(name, 3, conn=conn)
    pgmq.pool.putconn(conn)
    assert [message.message for message in pgmq.read(name, qty=5)] == [1]


def test_a_transaction_in_which_something_failed_does_not_commit(pgmq, name):
    with pytest.raises(RuntimeError, match="rolled back"), pgmq.pool.connection() as conn:
        pgmq.send(name, 1, conn=conn)
        with pytest.raises(PgmqError):
            pgmq.send(f"{name}_missing", 1, conn=conn)
        with pytest.raises(RuntimeError, match="has failed"):
            pgmq.send(name, 2, conn=conn)
    assert pgmq.metrics(name).queue_length == 0
    with pytest.raises(RuntimeError, match="rolled back"), pgmq.pool.connection() as conn, conn.transaction():
        pgmq.send(name, 1, conn=conn)
        # There are no savepoints: what fails in an inner block fails the whole.
        with pytest.raises(KeyError), conn.transaction():
            raise KeyError
    assert pgmq.metrics(name).queue_length == 0


def test_a_batch_beyond_one_call_is_a_part_of_the_transaction(pgmq, name):
    with pytest.raises(KeyError), pgmq.pool.connection() as conn:
        pgmq.send_batch(name, list(range(1_500)), conn=conn)
        raise KeyError
    assert pgmq.metrics(name).queue_length == 0


def test_a_connection_speaks_no_sql_and_one_of_postgres_is_refused(pgmq, name):
    with pgmq.pool.connection() as conn, pytest.raises(NotImplementedError, match="SQL"):
        conn.execute("SELECT 1")
    with pytest.raises(TypeError, match=r"PGMQueue\.pool"):
        pgmq.send(name, 1, conn=object())


def test_many_threads_have_their_transactions_one_after_the_other(name):
    with PGMQueue(pool_size=2) as queue:

        @transaction
        def send(queue, number, conn=None):
            queue.send(name, number, conn=conn)
            queue.send(name, number, conn=conn)

        threads = [threading.Thread(target=send, args=(queue, number)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert queue.metrics(name).queue_length == 24


def test_a_pool_is_shared_and_outlives_those_who_borrow_it(pgmq, name):
    with PGMQueue(pool=pgmq.pool) as other:
        other.send(name, 1)
    assert pgmq.read(name).message == 1


def test_tembo_takes_the_queue_by_its_name(name):
    queue = Tembo()

    @tembo_transaction
    def send(queue, conn=None):
        queue.send(name, {"n": 1}, conn=conn)
        assert queue.metrics(name).queue_length == 0

    send(queue=queue)
    assert queue.metrics(name).queue_length == 1
    queue.pool.close()


@async_transaction
async def async_fill(queue, name, fails=False, conn=None):
    await queue.create_queue(name, conn=conn)
    await queue.create_queue(name, unlogged=True, conn=conn)
    assert await queue.drop_queue(f"{name}_missing", conn=conn) is False
    await queue.send(name, 1, conn=conn)
    if fails:
        raise KeyError(name)
    return await queue.read(name, conn=conn)


async def test_an_asynchronous_function_is_a_transaction_too(async_pgmq, name):
    with pytest.raises(KeyError):
        await async_fill(async_pgmq, f"{name}_1", fails=True)
    assert await async_pgmq.drop_queue(f"{name}_1") is False
    message = await async_fill(async_pgmq, f"{name}_1")
    assert await async_pgmq.delete(f"{name}_1", message.msg_id) is True


async def test_an_asynchronous_connection_is_used_as_asyncpg_s(async_pgmq, name):
    queue: AsyncPGMQueue = async_pgmq
    async with queue.pool.acquire() as conn:
        # Outside of a transaction, each call is one of its own.
        await queue.send(name, 1, conn=conn)
        assert (await queue.metrics(name)).queue_length == 1
        transaction = conn.transaction()
        await transaction.start()
        await queue.send(name, 2, conn=conn)
        assert conn.is_in_transaction()
        await transaction.rollback()
        async with conn.transaction():
            await queue.send(name, 3, conn=conn)
            async with conn.transaction():
                await queue.send(name, 4, conn=conn)
            assert (await queue.metrics(name)).queue_length == 1
        with pytest.raises(NotImplementedError, match="SQL"):
            await conn.fetch("SELECT 1")
    conn = await queue.pool.acquire()
    await conn.transaction().start()
    await queue.send(name, 5, conn=conn)
    await queue.pool.release(conn)
    assert [message.message for message in await queue.read(name, qty=9)] == [1, 3, 4]


async def test_an_asynchronous_transaction_in_which_something_failed_does_not_commit(async_pgmq, name):
    async with async_pgmq.pool.acquire() as conn:
        with pytest.raises(RuntimeError, match="rolled back"):
            async with conn.transaction():
                await async_pgmq.send(name, 1, conn=conn)
                with pytest.raises(PgmqError):
                    await async_pgmq.send(f"{name}_missing", 1, conn=conn)
                with pytest.raises(RuntimeError, match="has failed"):
                    await async_pgmq.send(name, 1, conn=conn)
        await async_pgmq.send(name, 2, conn=conn)
    assert (await async_pgmq.metrics(name)).queue_length == 1
