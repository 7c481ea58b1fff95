"""Where the server is, waiting for what happens, and a connection that can be cut."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pgmq_grpc import Client, PgmqError

TARGET = os.environ["PGMQ_GRPC_TARGET"]


def eventually(condition: Callable[[], object], within: float = 30) -> None:
    """Waits until something is true, for a time that only a failure takes."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it has not become true"
        time.sleep(0.02)


def run_program(program: str) -> str:
    """Runs a program of Python in a process of its own, where no other test has been, and gives what it prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def server_with_postgres() -> Iterator[tuple[str, dict[str, str]]]:
    """Runs a server, and gives its target and the address of its Postgres."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        target, port, data = f"127.0.0.1:{free_port()}", str(free_port()), f"{place}/data"
        process = subprocess.Popen(  # noqa: S603 -- the server under test
            [os.environ["PGMQ_GRPC_SERVER"], "--listen", target, "--data-dir", data, "--postgres-port", port],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with Client(target) as client:
                eventually(lambda: has_pgmq(client), within=120)
            password = Path(data, "password").read_text().strip()
            yield (
                target,
                {"host": "127.0.0.1", "port": port, "database": "pgmq", "username": "pgmq", "password": password},
            )
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def has_pgmq(client: Client) -> bool:
    try:
        return bool(client.get_server_info().pgmq_version)
    except PgmqError:
        return False


class Proxy:
    """Passes bytes on between clients and the server, until it is told to cut or to refuse connections.

    It listens at a free port, or at the path of a Unix socket.
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen()
            self.target = f"unix:{path}"
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self.refuses = False
        self.is_deaf = False
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Ends all connections."""
        with self._lock:
            for each in self._sockets:
                with_shutdown(each)
            self._sockets.clear()

    def close(self) -> None:
        self.refuses = True
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.refuses:
                near.close()
                continue
            host, port = TARGET.rsplit(":", 1)
            far = socket.create_connection((host, int(port)))
            with self._lock:
                self._sockets += [near, far]
                self.connections += 1
            for source, sink, answers in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pump, args=(source, sink, answers), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        try:
            while data := source.recv(65536):
                if not (answers and self.is_deaf):
                    sink.sendall(data)
        except OSError:
            pass
        finally:
            with_shutdown(source)
            with_shutdown(sink)
            source.close()


def with_shutdown(each: socket.socket) -> None:
    try:
        each.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
