"""The drop-ins' signatures, compared with those of the packages that they stand in for.

A difference is a failure, unless it is listed here with its reason.
"""

import dataclasses
import importlib
import inspect
import typing
from datetime import datetime

import pgmq
import pgmq.async_queue
import pgmq.notify_listener
import pytest
import tembo_pgmq_python as tembo
import tembo_pgmq_python.async_queue
import tembo_pgmq_python.messages

from pgmq_grpc import pgmqueue
from pgmq_grpc.compat import tembo as our_tembo
from pgmq_grpc.compat.tembo import async_queue as our_tembo_async
from pgmq_grpc.compat.tembo import messages as our_tembo_messages
from pgmq_grpc.pgmqueue import notify_listener

CLASSES = [
    (pgmq.PGMQueue, pgmqueue.PGMQueue),
    (pgmq.AsyncPGMQueue, pgmqueue.AsyncPGMQueue),
    (pgmq.notify_listener.SyncNotificationListener, notify_listener.SyncNotificationListener),
    (pgmq.notify_listener.AsyncNotificationListener, notify_listener.AsyncNotificationListener),
    (tembo.PGMQueue, our_tembo.PGMQueue),
    (tembo_pgmq_python.async_queue.PGMQueue, our_tembo_async.PGMQueue),
]
DATACLASSES = [
    *((getattr(pgmq.messages, name), getattr(pgmqueue, name)) for name in (
        "Message", "QueueRecord", "QueueMetrics", "TopicBinding", "RoutingResult", "BatchTopicResult",
        "NotificationThrottle",
    )),
    (tembo_pgmq_python.messages.Message, our_tembo_messages.Message),
    (tembo_pgmq_python.messages.QueueMetrics, our_tembo_messages.QueueMetrics),
]  # fmt: skip

# Fields of the classes and parameters of their constructors.
CHANGED_DEFAULTS = {
    "host": "the server's, not that of Postgres: None means PGMQ_GRPC_TARGET",
    "port": "the server's, not that of Postgres",
    "database": "Postgres's: None tells that it was not given, so that giving it warns",
    "username": "Postgres's, as database",
    "password": "Postgres's, as database",
    "init_extension": "True, which was the default already, without the environment variable PG_INIT_EXTENSION",
}
RENAMED = {"conn_string": "target"}
MORE = {
    "target": "tembo-pgmq-python has no connection string; the address comes first in all of them",
    "client": "a client that was made otherwise, such as with TLS",
}
NOT_HERE = {
    "SQLAlchemyPGMQueue": "SQL",
    "SQLAlchemyAsyncPGMQueue": "SQL",
    "sqlalchemy_transaction": "SQL",
    "sqlalchemy_async_transaction": "SQL",
    "PGMQInstallError": "the server installs pgmq",
    "get_embedded_install_sql": "the server installs pgmq",
    "get_embedded_sql_version": "the server installs pgmq",
    "install_pgmq_from_sql": "the server installs pgmq",
    "install_pgmq_sql": "the server installs pgmq",
    "__version__": "that of another package",
}
# Return types.
TRUER_RETURNS = {
    (our_tembo.PGMQueue, "read_batch"): "a list, never None",
    (our_tembo.PGMQueue, "read_with_poll"): "a list, never None",
    (our_tembo_async.PGMQueue, "read_batch"): "a list, never None",
    (our_tembo_async.PGMQueue, "read_with_poll"): "a list, never None",
}
TRUER_FIELDS = {
    "message": "any JSON value, not only an object",
    "newest_msg_age_sec": "None for an empty queue",
    "oldest_msg_age_sec": "None for an empty queue",
}


def ids(value):
    return f"{value.__module__}.{value.__name__}" if inspect.isclass(value) else None


def written(hint) -> str:
    """A type's form that is the same for Optional[X] and X | None, List and list, and for classes of the same name."""
    if hint is None or hint is type(None):
        return "None"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union or str(origin) == "<class 'types.UnionType'>":
        return " | ".join(sorted(written(each) for each in arguments))
    if arguments:
        return f"{origin.__name__}[{', '.join(written(each) for each in arguments)}]"
    return getattr(hint, "__name__", str(hint))


def returned(function) -> str:
    """The return type of a function. Ours are texts, some with names that are imported for type checkers alone."""
    given = inspect.unwrap(function).__annotations__.get("return", inspect.Signature.empty)
    if isinstance(given, str):
        messages = our_tembo_messages if "tembo" in function.__module__ else pgmqueue
        names = {**vars(messages), **vars(importlib.import_module(function.__module__)), "datetime": datetime}
        given = eval(given, names)
    return written(given)


def methods(kind):
    return {name: member for name, member in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


@pytest.mark.parametrize(("theirs", "ours"), CLASSES, ids=ids)
def test_every_method_has_the_same_parameters_and_returns_the_same(theirs, ours):
    differences = []
    for name, method in methods(theirs).items():
        own = getattr(ours, name, None)
        if own is None:
            differences.append(f"{name} is missing")
            continue
        if inspect.iscoroutinefunction(inspect.unwrap(method)) != inspect.iscoroutinefunction(own):
            differences.append(f"{name} is asynchronous in one of them only")
        their_parameters, own_parameters = (
            [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]
            for function in (method, own)
        )
        if their_parameters != own_parameters:
            differences.append(f"{name}{inspect.signature(method)} is {name}{inspect.signature(own)}")
        if (ours, name) not in TRUER_RETURNS and returned(method) not in ("_empty", returned(own)):
            differences.append(f"{name} returns {returned(method)} there and {returned(own)} here")
    assert differences == []


@pytest.mark.parametrize(("theirs", "ours"), [pair for pair in CLASSES if dataclasses.is_dataclass(pair[0])], ids=ids)
def test_constructors_differ_only_where_the_address_does(theirs, ours):
    their_parameters = inspect.signature(theirs).parameters
    own_parameters = dict(inspect.signature(ours).parameters)
    expected = [RENAMED.get(name, name) for name in their_parameters]
    assert [name for name in own_parameters if name in expected] == expected
    assert set(own_parameters) - set(expected) <= set(MORE)
    assert next(iter(own_parameters)) == "target"
    for name, parameter in their_parameters.items():
        if name in RENAMED or name in CHANGED_DEFAULTS:
            continue
        assert own_parameters[name].kind == parameter.kind
        assert repr(own_parameters[name].default) == repr(parameter.default), name


@pytest.mark.parametrize(("theirs", "ours"), DATACLASSES, ids=ids)
def test_dataclasses_have_the_same_fields(theirs, ours):
    their_fields, own_fields = dataclasses.fields(theirs), dataclasses.fields(ours)
    assert [field.name for field in own_fields] == [field.name for field in their_fields]
    for their_field, own_field in zip(their_fields, own_fields, strict=True):
        assert own_field.default is their_field.default
        if own_field.name not in TRUER_FIELDS:
            own_type = eval(own_field.type, {**vars(typing), "datetime": datetime})
            assert written(own_type) == written(their_field.type)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("pgmq", name) for name in pgmq.__all__ if name not in NOT_HERE),
        ("pgmq.decorators", "transaction"),
        ("pgmq.decorators", "async_transaction"),
        ("pgmq.logger", "LoggingManager"),
        ("pgmq.logger", "log_with_context"),
        ("pgmq.queue", "PGMQueue"),
        ("pgmq.async_queue", "PGMQueue"),
        ("pgmq.messages", "BatchTopicResult"),
        *(("tembo_pgmq_python", name) for name in tembo.__all__),
        ("tembo_pgmq_python.decorators", "async_transaction"),
        ("tembo_pgmq_python.queue", "PGMQueue"),
        ("tembo_pgmq_python.async_queue", "PGMQueue"),
        ("tembo_pgmq_python.messages", "QueueMetrics"),
    ],
)
def test_what_is_imported_from_a_package_is_found_under_the_same_name(module, name):
    ours = module.replace("tembo_pgmq_python", "pgmq_grpc.compat.tembo")
    ours = ours.replace("pgmq", "pgmq_grpc.pgmqueue", 1) if ours == module else ours
    assert hasattr(importlib.import_module(ours), name)
