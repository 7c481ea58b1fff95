"""The words of calls: what a step does, through the client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from values import given, items, outgoing, plain, written

from pgmq_grpc import AsyncClient, AsyncTransaction

# Words whose arguments and results are those of the client's method of that name.
_OF_CLIENT = {
    "convert_archive_partitioned",
    "create_queue",
    "disable_notifications",
    "drop_queue",
    "enable_notifications",
    "get_queue",
    "get_queue_metrics",
    "get_server_info",
    "install_pgmq",
    "list_clients",
    "list_notifications",
    "list_queue_metrics",
    "list_queues",
    "list_topic_bindings",
    "purge_queue",
    "set_queue_layout",
    "test_routing",
    "update_notifications",
    "update_queue",
    "validate_name",
}
_OF_QUEUE = {"delete_archived_messages", "list_archived_messages", "list_messages", "pop", "read", "replay"}
_SETTLES = {"archive", "dead_letter", "delete", "release", "set_visibility_timeout"}


async def call(client: AsyncClient, word: str, arguments: dict[str, Any]) -> Any:
    """Do what a word of calls says, and give what came back as cases see it."""
    return plain(await _call(client, word, dict(arguments)), client.json)


async def _call(client: AsyncClient, word: str, arguments: dict[str, Any]) -> Any:
    if word in _OF_CLIENT:
        return await _all(getattr(client, word)(**given(arguments)))
    if word in _OF_QUEUE:
        queue = client.queue(arguments.pop("queue"))
        return await _all(getattr(queue, word)(**given(arguments)))
    if word in _SETTLES:
        queue = client.queue(arguments.pop("queue"))
        settled, rest = items(arguments)
        return await getattr(queue, word)(settled, **rest)
    match word:
        case "send":
            return await client.queue(arguments.pop("queue")).send(**written(arguments))
        case "send_batch":
            messages = [outgoing(message) for message in arguments.pop("messages")]
            return await client.queue(arguments.pop("queue")).send_batch(messages, **arguments)
        case "send_topic":
            return await client.send_topic(**written(arguments))
        case "send_topic_batch":
            messages = [outgoing(message) for message in arguments.pop("messages")]
            return await client.send_topic_batch(messages=messages, **arguments)
        case "bind_topic":
            return {"created": await client.bind_topic(**arguments)}
        case "unbind_topic":
            return {"removed": await client.unbind_topic(**arguments)}
        case "redrive":
            return await client.queue(arguments.pop("dead_letter_queue")).redrive(**arguments)
        case "create_fifo_index":
            return await client.create_fifo_index(None if arguments.pop("all_queues", False) else arguments["queue"])
        case "transact":
            return await _transact(client, **arguments)
        case "settle":
            return await _settle(**arguments)
    raise ValueError(f"there is no word {word}")


async def _all(answer: Any) -> Any:
    """The answer, or all elements of a list that comes in pages."""
    if isinstance(answer, AsyncIterator):
        return [element async for element in answer]
    return await answer


async def _transact(client: AsyncClient, operations: list[dict[str, Any]], **arguments: Any) -> Any:
    words = []
    transaction = client.transact(**arguments)
    async with transaction:
        for operation in operations:
            ((word, argument),) = operation.items()
            words.append(word)
            _operate(transaction, word, dict(argument))
    results = [{word: result} for word, result in zip(words, transaction.results, strict=True)]
    return {"results": [plain_result(each) for each in results], "deduplicated": transaction.deduplicated}


def plain_result(result: dict[str, Any]) -> dict[str, Any]:
    """The result of an operation, under its word."""
    return {word: plain(value) for word, value in result.items()}


def _operate(transaction: AsyncTransaction, word: str, arguments: dict[str, Any]) -> None:
    operation = getattr(transaction, word)
    if word in _SETTLES:
        queue = arguments.pop("queue")
        settled, rest = items(arguments)
        operation(queue, settled, **rest)
    elif word == "send_batch":
        operation(arguments["queue"], [outgoing(message) for message in arguments["messages"]])
    else:
        operation(**written(arguments))


async def _settle(message: Any, action: str, **arguments: Any) -> Any:
    return await getattr(message.message, action)(**arguments)
