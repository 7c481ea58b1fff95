"""Makes the client for threads, src/pgmq_grpc/_sync, of the one for asyncio, src/pgmq_grpc/_async.

They differ in some words only; what differs in more stands in io.py of both, which is left alone. Usage:
make_sync.py DIRECTORY_OF_ASYNC DIRECTORY_OF_SYNC
"""

import re
import sys
from pathlib import Path

WORDS = [
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b__a(enter|exit|iter)__\b", r"__\1__"),
    (r"\b_async\b", "_sync"),
    (r"asyncio\.gather\(\*\((.*)\)\)", r"[\1]"),
]
NOTICE = "# Made of _async/{} by make_sync.py: change it there.\n"


def main(source: Path, target: Path) -> None:
    """Write each module anew."""
    for module in sorted(source.glob("*.py")):
        if module.name in {"__init__.py", "io.py"}:
            continue
        text = module.read_text()
        for word, other in WORDS:
            text = re.sub(word, other, text)
        (target / module.name).write_text(NOTICE.format(module.name) + text)


main(*map(Path, sys.argv[1:]))
