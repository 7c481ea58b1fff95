"""Orders come in, a worker bills them, and what was billed is archived and can be replayed.

    PGMQ_GRPC_TARGET=127.0.0.1:50051 python orders.py

ORDERS_QUEUE names the queue. EXAMPLE_ROLE says what to do: `intake` sends orders, `worker` works until there has been
nothing to do for some seconds, and `all`, without it, does everything on a queue of its own and cleans up.
"""

import os
import sys
from collections import Counter
from decimal import Decimal
from threading import Timer

from pgmq_grpc import Client, DeadLetterPolicy, Message, Queue, QueuePolicy, RetryBackoff

ORDERS = 20
POISON = 13
IDLE_SECONDS = 5


def intake(queue: Queue) -> None:
    """Send orders, many at once over one stream. One of them cannot be billed: it has no total."""
    with queue.producer(idempotent=True) as producer:
        sent = [producer.submit(order(number)) for number in range(1, ORDERS + 1)]
        print(f"sent {len({future.result().msg_id for future in sent})} orders")


def order(number: int) -> dict[str, object]:
    """Make an order. Its total is text, so that no language reads it as a float."""
    return {"order": number, "total": None if number == POISON else f"{number}.50", "language": "python"}


class Worker:
    """Bills orders until enough are done, or nothing gets done for a while."""

    def __init__(self, queue: Queue, enough: int | None = None) -> None:
        self.consumer = queue.consume(visibility_timeout=30, max_in_flight=10)
        self.enough = enough
        self.billed: Counter[str] = Counter()
        self.given_up = self.retries = 0
        self.total = Decimal(0)
        self.idle = self.timer()

    def work(self) -> None:
        """Handle messages one at a time. A handler that returns archives its message; one that raises releases it."""
        self.idle.start()
        self.consumer.run(self.bill, action="ARCHIVE")
        self.idle.cancel()
        print(f"billed {dict(self.billed)} for {self.total}, retried {self.retries}, gave up {self.given_up}")

    def bill(self, message: Message) -> None:
        """Bill one order. The service that it needs fails now and then, but not twice for one order."""
        body = message.message
        if body["order"] % 5 == 0 and message.read_ct == 1:
            self.retries += 1
            raise ConnectionError("the billing service is busy")
        if body["total"] is None:
            # No repetition cures this.
            message.dead_letter("it has no total")
            self.given_up += 1
        else:
            self.total += Decimal(body["total"])
            self.billed[body["language"]] += 1
        self.idle.cancel()
        self.idle = self.timer()
        self.idle.start()
        if self.billed.total() + self.given_up == self.enough:
            self.consumer.stop()

    def timer(self) -> Timer:
        """Stop the consumer when nothing gets done."""
        return Timer(IDLE_SECONDS, self.consumer.stop)


def everything(client: Client, queue: Queue) -> None:
    """Show the whole life of orders, and check it."""
    failed = client.queue(f"{queue.name}_failed")
    failed.create()
    queue.create(
        policy=QueuePolicy(
            dead_letter=DeadLetterPolicy(failed.name, max_receives=5),
            retry_backoff=RetryBackoff(minimum=0.1, maximum=1),
        )
    )
    try:
        intake(queue)
        Worker(queue, enough=ORDERS).work()

        letters = failed.read(10)
        check([letter.message["order"] for letter in letters] == [POISON], "the poison is the only dead letter")
        print(f"order {POISON} was given up: {(letters[0].headers or {})['x-pgmq-dead-letter']}")
        letters[0].delete()

        archived = list(queue.list_archived_messages())
        print(f"the archive holds {len(archived)} orders, the first of {archived[0].archived_at:%H:%M:%S}")
        check(len(archived) == ORDERS - 1, "every other order is archived")

        moved = queue.replay(msg_ids=[archived[0].message.msg_id]).replayed_count
        again = Worker(queue, enough=moved)
        again.work()
        check(again.billed.total() == 1, "a replayed order is billed again")
    finally:
        queue.drop()
        failed.drop()


def check(holds: bool, what: str) -> None:
    """End the program when something is missing."""
    if not holds:
        sys.exit(f"not so: {what}")


def main() -> None:
    """Do what EXAMPLE_ROLE says."""
    with Client(name="orders of Python") as client:
        queue = client.queue(os.environ.get("ORDERS_QUEUE", "orders"))
        match os.environ.get("EXAMPLE_ROLE", "all"):
            case "intake":
                intake(queue)
            case "worker":
                Worker(queue).work()
            case "all":
                everything(client, queue)
            case other:
                sys.exit(f"EXAMPLE_ROLE is {other!r}: not all, intake or worker")


if __name__ == "__main__":
    main()
