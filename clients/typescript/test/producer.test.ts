import assert from "node:assert/strict";
import { test } from "node:test";
import { JsonText, PgmqError } from "pgmq-grpc";
import { client, eventually, queue, Way } from "./surroundings.js";

const shared = client();

test("sends share a stream, and each gets its own id or error", async () => {
  const orders = await queue(shared);
  await using producer = orders.producer();

  const results = await Promise.allSettled([
    ...Array.from({ length: 2500 }, (_, n) => producer.send({ n })),
    producer.send(new JsonText("{oops}")),
    producer.send("keyed", { deduplicationId: "k" }),
    producer.send("keyed", { deduplicationId: "k" }),
  ]);

  const ids = results.slice(0, 2500).map((result) => (result as PromiseFulfilledResult<{ msgId: string }>).value.msgId);
  assert.equal(new Set(ids).size, 2500);
  const [wrong, first, second] = results.slice(2500);
  assert.equal(((wrong as PromiseRejectedResult).reason as PgmqError).reason, "INVALID_JSON");
  assert.equal((first as PromiseFulfilledResult<{ deduplicated: boolean }>).value.deduplicated, false);
  assert.equal((second as PromiseFulfilledResult<{ deduplicated: boolean }>).value.deduplicated, true);
  assert.equal((await orders.metrics()).queueLength, 2501);
});

test("a window that is full makes sends wait", async () => {
  const orders = await queue(shared);
  await using producer = orders.producer({ maxUnanswered: 3 });

  const results = await Promise.all(Array.from({ length: 20 }, (_, n) => producer.send(n)));

  assert.deepEqual(
    results.map(({ msgId }) => Number(msgId)),
    Array.from({ length: 20 }, (_, n) => n + 1),
  );
});

test("messages with an id are sent again after a broken stream, once each", async () => {
  const way = await Way.open();
  const orders = await queue(client({}, way.address));
  const producer = orders.producer({ idempotent: true });
  let stored = 0;
  const sends = Array.from({ length: 40 }, async (_, caller) => {
    for (let n = 0; n < 25; n++) {
      await producer.send({ caller, n });
      if (++stored % 250 === 0) way.cut();
    }
  });

  await Promise.all(sends);

  await producer.close();
  assert.ok(way.connections >= 4, `${way.connections} connections`);
  assert.equal((await shared.queue(orders.name).metrics()).queueLength, 1000);
});

test("messages without an id fail with a broken stream, and their outcome is unknown", async () => {
  const way = await Way.open();
  const orders = await queue(client({}, way.address));
  await using producer = orders.producer();
  await producer.send("first");

  const errors: PgmqError[] = [];
  let stored = 1;
  const caller = async () => {
    while (errors.length === 0)
      await producer.send("next").then(
        () => stored++,
        (error: unknown) => errors.push(error as PgmqError),
      );
  };
  const callers = Array.from({ length: 20 }, caller);
  await eventually("some are stored", () => stored > 50);
  way.cut();
  await Promise.all(callers);

  for (const error of errors) {
    assert.equal(error.code, "UNAVAILABLE");
    assert.equal(error.outcomeUnknown, true);
  }
  assert.ok((await producer.send("after")).msgId, "the producer goes on");
});

test("sends that cannot leave fail in time, and their outcome is known", async () => {
  const way = await Way.open();
  const orders = client({}, way.address).queue("orders");
  await way.close();
  await using producer = orders.producer({ timeoutMs: 300 });

  await assert.rejects(producer.send(1), { code: "DEADLINE_EXCEEDED", outcomeUnknown: false });
  const controller = new AbortController();
  const send = producer.send(2, { signal: controller.signal, timeoutMs: 60_000 });
  controller.abort();
  await assert.rejects(send, { code: "CANCELLED" });
});

test("closing waits for what is under way, and takes no more", async () => {
  const orders = await queue(shared);
  const producer = orders.producer();
  const sends = Array.from({ length: 100 }, (_, n) => producer.send(n));

  await producer.close();

  await Promise.all(sends);
  await assert.rejects(producer.send(1), { code: "CANCELLED", outcomeUnknown: false });
  await shared.queue(orders.name).producer().close();
});

test("a message that no request can carry is refused alone", async () => {
  const orders = await queue(shared);
  await using producer = orders.producer();

  const sends = ["before", "x".repeat(9 << 20), "after"].map((message) => producer.send(message));
  const [before, large, after] = await Promise.allSettled(sends);

  const { code, reason, outcomeUnknown } = (large as PromiseRejectedResult).reason as PgmqError;
  assert.deepEqual(
    { code, reason, outcomeUnknown },
    { code: "INVALID_ARGUMENT", reason: "MESSAGE_TOO_LARGE", outcomeUnknown: false },
  );
  assert.deepEqual([before?.status, after?.status], ["fulfilled", "fulfilled"]);
});
