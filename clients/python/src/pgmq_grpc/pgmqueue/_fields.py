"""What the plain and the asynchronous class are made with."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from ._config import find_target, warn_of_unused
from .logger import LoggingManager, log_with_context


@dataclass
class ClientFields:
    """The parameters of pgmq-py's classes, where `target` stands in place of Postgres's connection string."""

    target: str | None = None
    host: str | None = None
    port: str | int | None = None
    database: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    delay: int = 0
    vt: int = 30
    pool_size: int = 10
    verbose: bool = False
    log_filename: str | None = None
    init_extension: bool = True
    structured_logging: bool = False
    log_rotation: bool = False
    log_rotation_size: str = "10 MB"
    log_retention: str = "1 week"

    def __post_init__(self) -> None:
        """Find the server, and set up the logger."""
        self.target = find_target(self.target, self.host, self.port)
        warn_of_unused(4, database=self.database, username=self.username, password=self.password)
        self.logger = LoggingManager.get_logger(
            type(self).__module__,
            verbose=self.verbose,
            log_filename=self.log_filename,
            structured=self.structured_logging,
            rotation=self.log_rotation_size if self.log_rotation else None,
            retention=self.log_retention if self.log_rotation else None,
        )
        log_with_context(self.logger, logging.DEBUG, f"{type(self).__name__} initialized", target=self.target)
