"""Where the server is, by the parameters and the environment variables of pgmq-py."""

from __future__ import annotations

import os
import warnings

DEFAULT_TARGET = "127.0.0.1:50051"
TARGET_VARIABLE = "PGMQ_GRPC_TARGET"
POSTGRES_VARIABLES = ("DATABASE_URL", "PG_HOST", "PG_PORT", "PG_DATABASE", "PG_USERNAME", "PG_PASSWORD")


def find_target(target: str | None, host: str | None, port: str | int | None) -> str:
    """Give the server's address: what is given, else that of the environment, else the usual one of this machine.

    An address of Postgres is an error, and so are the environment variables that led to Postgres where nothing says
    where the server is: a program that was moved is not to talk to another server than it seems to.
    """
    if target:
        if host or port:
            raise ValueError("give target, or host and port, not both")
        refuse_postgres(target)
        return target
    if host or port:
        name = host or "localhost"
        return f"[{name}]:{port or 50051}" if ":" in name else f"{name}:{port or 50051}"
    if found := os.environ.get(TARGET_VARIABLE):
        refuse_postgres(found)
        return found
    if led_to_postgres := [name for name in POSTGRES_VARIABLES if os.environ.get(name)]:
        raise ValueError(
            f"{', '.join(led_to_postgres)} of the environment say where Postgres is, which only the server needs to "
            f"know: give the server's address as target, or as {TARGET_VARIABLE}, such as {DEFAULT_TARGET}"
        )
    return DEFAULT_TARGET


def refuse_postgres(target: str) -> None:
    """Raise an error for a connection string of Postgres."""
    if target.startswith(("postgres://", "postgresql://", "postgresql+")) or "dbname=" in target or "host=" in target:
        raise ValueError(
            "this is a connection string of Postgres; give the address of the pgmq-grpc server, "
            f"such as {DEFAULT_TARGET}, unix:/run/pgmq-grpc.sock or dns:///queues.internal:50051"
        )


def warn_of_unused(stacklevel: int, **parameters: object) -> None:
    """Warn of parameters that only Postgres has a use for, unless they are None."""
    if given := [name for name, value in parameters.items() if value is not None]:
        warnings.warn(
            f"{', '.join(given)}: the pgmq-grpc server knows its database, so this has no effect; leave it out",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
