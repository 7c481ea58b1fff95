"""The programs of the documents in ../shared/seeds, which is beside the repository in some places, run as they stand.

Only imports, connections and, where it says so, the number of messages are changed. Equivalents of them in the other
tests run everywhere.
"""

import ast
import asyncio
import inspect
import os
import re
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from test_tembo import run_together

TARGET = os.environ["PGMQ_GRPC_TARGET"]
SEEDS = Path(__file__).parents[5] / "shared" / "seeds"

pytestmark = pytest.mark.skipif(not SEEDS.is_dir(), reason=f"{SEEDS} is not here")


def section(document: str, start: str, end: str) -> str:
    """The lines of a document between two lines."""
    lines = (SEEDS / document).read_text().splitlines()
    first = lines.index(start) + 1
    return "\n".join(lines[first : lines.index(end, first)])


def run(code: str, **names: object) -> dict[str, object]:
    """Runs a program, which may await at its top, and gives its names."""
    names["__name__"] = "__main__"
    compiled = compile(code, "<seed>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if compiled.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(compiled, names))
    else:
        exec(compiled, names)
    return names


@pytest.fixture
def fresh(client):
    """Drops the queues that a program uses, before and after it."""
    used: list[str] = []

    def drop(*names: str) -> None:
        used.extend(names)
        for name in names:
            for queue in list(client.list_queues(prefix=name)):
                client.drop_queue(queue.name)

    yield drop
    drop(*used)


def pgmq_py(start: str, end: str) -> str:
    return section("pgmq-py-docs.txt", start, end).replace("from pgmq import", "from pgmq_grpc.pgmqueue import")


def test_the_quick_example_of_pgmq_py(fresh, capsys):
    fresh("my_queue")
    names = run(pgmq_py("Quick Example¶", "For async usage:"))
    assert capsys.readouterr().out == "{'hello': 'world'}\n"
    assert names["msg_id"] == names["msg"].msg_id == 1


def test_the_asynchronous_example_of_pgmq_py(fresh):
    fresh("my_queue")
    assert run(pgmq_py("For async usage:", "Backward Compatibility¶"))["msg_id"] == 1


def test_the_producer_and_five_consumers_of_tembo(fresh, client, tmp_path):
    fresh("bench_queue_sample")
    # The consumers that the document starts two seconds later find the queue.
    client.create_queue("bench_queue_sample")
    text = (SEEDS / "pgmq-with-python-source.txt").read_text()
    programs = [block for block in re.findall(r"```py\n(.*?)```", text, re.DOTALL) if "__main__" in block]
    count = int(os.environ.get("PGMQ_GRPC_TEMBO_MESSAGES", "1000"))
    host, port = TARGET.rsplit(":", 1)
    changes = [
        (r"tembo_pgmq_python", "pgmq_grpc.compat.tembo"),
        (r'host = "localhost"', f'host = "{host}"'),
        (r"port = 5432", f"port = {port}"),
        (r",\s*username=username,\s*password=password,\s*database=database\)", ")"),
        (r"num_messages = 100000", f"num_messages = {count}"),
    ]
    for pattern, replacement in changes:
        programs = [re.sub(pattern, replacement, program) for program in programs]
    produced, consumed = run_together(tmp_path, *programs)
    assert produced.splitlines()[-1] == f"Sent {count // 1_000 * 1_000} messages"
    lines = Counter(line for each in consumed for line in each)
    messages = {line: times for line, times in lines.items() if line.startswith("Consumed message: ")}
    # Payloads are random, and two of them may be equal.
    assert sum(messages.values()) == count
    assert len(messages) >= count - 2
    assert len(lines) == len(messages) + 1
    assert client.get_queue_metrics("bench_queue_sample").queue_length == 0


def pgqrs(start: str, end: str) -> str:
    code = section("pgqrs-python-api.txt", start, end).replace(
        "from pgqrs import", "from pgmq_grpc.compat.pgqrs import"
    )
    return code.replace("postgresql://localhost/mydb", TARGET)


def defined(start: str, end: str, **names: object) -> dict[str, object]:
    return run("from pgmq_grpc.compat.pgqrs import Admin, Consumer, Producer\n" + pgqrs(start, end), **names)


def test_the_quick_reference_of_pgqrs(fresh, capsys):
    fresh("tasks")
    run(pgqrs("Setup", "Producing Messages"))
    names = defined("Producing Messages", "Consuming Messages")
    asyncio.run(names["produce_messages"]())
    names = defined("Consuming Messages", "Async Support")
    asyncio.run(names["consume_messages"]())
    assert capsys.readouterr().out.splitlines() == [
        "Created queue: tasks",
        "Sent message: 1",
        "Processing: {'data': 123, 'task': 'process'}",
    ]


def test_the_asynchronous_example_of_pgqrs(fresh, capsys):
    fresh("my-queue")
    lines = pgqrs("Async Support", "With async frameworks").splitlines()
    run("\n".join(lines[lines.index("import asyncio") :]))
    assert capsys.readouterr().out == "Created: my-queue\n"


class App:
    """Stands in for an application of FastAPI."""

    def post(self, path):
        return lambda function: function


def test_the_web_applications_of_pgqrs(fresh, client, monkeypatch):
    fresh("tasks")
    client.create_queue("tasks")
    code = pgqrs("With async frameworks", "Error Handling")
    code = code[code.index("from fastapi") :]
    first, second = code.split("from aiohttp")
    monkeypatch.setitem(sys.modules, "fastapi", types.SimpleNamespace(FastAPI=App))
    answer = asyncio.run(run(first)["create_task"]({"n": 1}))
    assert answer == {"message_id": 1}
    web = types.SimpleNamespace(json_response=lambda value: value)
    monkeypatch.setitem(sys.modules, "aiohttp", types.SimpleNamespace(web=web))

    class Request:
        async def json(self):
            return {"n": 2}

    assert asyncio.run(run("from aiohttp" + second)["create_task"](Request())) == {"message_id": 2}
    assert [message.message for message in client.queue("tasks").pop(2)] == [{"n": 1}, {"n": 2}]


def test_the_error_handling_of_pgqrs(fresh, capsys):
    fresh("tasks")
    code = pgqrs("Error Handling", "Type Hints")
    names = run(code[code.index("from pgmq_grpc") :])
    asyncio.run(names["safe_create_queue"]())
    asyncio.run(names["safe_create_queue"]())
    assert capsys.readouterr().out == "Created: tasks\nQueue already exists\n"


def test_the_type_hints_of_pgqrs(fresh, client):
    fresh("tasks")
    client.create_queue("tasks")
    client.queue("tasks").send({"n": 1})
    code = pgqrs("Type Hints", "API Reference")
    names = defined("Consuming Messages", "Async Support") | run(code[code.index("from pgmq_grpc") :])
    asyncio.run(names["process"](names["Consumer"](TARGET, "tasks", "localhost", 1)))
    assert client.get_queue_metrics("tasks", include_archive=True).archive_length == 1


def test_the_complete_example_of_pgqrs(fresh, capsys):
    fresh("demo")
    run(pgqrs("Complete Example", "See Also"))
    assert capsys.readouterr().out.splitlines() == [
        *(f"Sent task {number}: {number + 1}" for number in range(5)),
        *(f"Processing: {{'task': {number}}}" for number in range(5)),
        "Done!",
    ]
