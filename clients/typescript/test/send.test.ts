import assert from "node:assert/strict";
import { test } from "node:test";
import type { Interceptor } from "@connectrpc/connect";
import { JsonText, type PgmqError, type SendResult } from "pgmq-grpc";
import { client, eventually, queue, Way } from "./surroundings.js";

const shared = client();

/** Sees the calls that sends make, and how many of their streams have been ended by the client. */
function spy(): { calls: string[]; ended: () => number; intercept: Interceptor } {
  const calls: string[] = [];
  let ended = 0;
  async function* toTheEnd<T>(messages: AsyncIterable<T>): AsyncGenerator<T> {
    yield* messages;
    ended++;
  }
  const intercept: Interceptor = (next) => (request) => {
    if (request.method.name === "Send" || request.method.name === "Produce") calls.push(request.method.name);
    return next(request.stream ? { ...request, message: toTheEnd(request.message) } : request);
  };
  return { calls, ended: () => ended, intercept };
}

async function errorOf(send: Promise<SendResult>): Promise<Partial<PgmqError>> {
  const { code, reason, field, metadata, outcomeUnknown, message, requestId, stack } = await send.then(
    () => assert.fail("the send has succeeded"),
    (error: unknown) => error as PgmqError,
  );
  assert.match(requestId ?? "", /^[\da-f-]{36}$/);
  assert.match(stack ?? "", /errorOf/, "the stack tells who has sent");
  return { code, reason, field, metadata, outcomeUnknown, message };
}

// It takes a while until it has been idle for long enough; the other tests go on meanwhile.
const resting = spy();
const rested = (async () => {
  const orders = await queue(client({ interceptors: [resting.intercept] }));
  await Promise.all([orders.send(1), orders.send(2)]);
  return orders;
})();

test("a send alone is a call, and those that come meanwhile share a stream", async () => {
  const { calls, intercept } = spy();
  const orders = await queue(client({ interceptors: [intercept] }));

  await orders.send("alone");
  assert.deepEqual(calls, ["Send"]);
  const results = await Promise.all(Array.from({ length: 500 }, (_, n) => orders.send({ n })));

  assert.deepEqual(calls, ["Send", "Send", "Produce"]);
  assert.equal(new Set(results.map(({ msgId }) => msgId)).size, 500);
  assert.equal((await orders.metrics()).queueLength, 501);
});

test("both ways take the same, and answer the same", async () => {
  const orders = await queue(shared);
  const settings = { headers: { trace: "t1" }, group: "g", delay: 3_600_000 };
  const visibleAt = new Date(Date.now() + 3_600_000);
  const keyed = { deduplicationId: "k" };

  const sends = [
    () => orders.send({ n: 1 }, settings),
    () => orders.send({ n: 2 }, { visibleAt }),
    () => orders.send(new JsonText('{"price": 1.10}')),
    () => orders.send("x".repeat(900_000)),
  ];
  for (const send of sends) await send();
  await Promise.all([orders.send("first"), ...sends.map((send) => send())]);
  assert.deepEqual(await orders.send("keyed", keyed), { msgId: "10", deduplicated: false });
  const [, again] = await Promise.all([orders.send("first"), orders.send("keyed", keyed)]);

  assert.deepEqual(again, { msgId: "10", deduplicated: true });
  const stored = [];
  for await (const { headersText, messageText, vt } of orders.listMessages())
    stored.push([headersText, messageText, vt.getTime() > Date.now()]);
  assert.deepEqual(stored.slice(5, 9), stored.slice(0, 4));
});

test("a bad one among many has the error that it would have alone, and hurts nobody", async () => {
  const orders = await queue(shared);
  await orders.send("taken", { deduplicationId: "k" });
  const bad = [
    () => orders.send(new JsonText("{oops}")),
    () => orders.send(undefined),
    () => orders.send("y".repeat(1_100_000)),
    () => orders.send("z".repeat(9 << 20)),
    () => orders.send(1, { delay: -1 }),
    () => orders.send(1, { delay: 1e17 }),
    () => orders.send(1, { group: "g".repeat(300) }),
    () => orders.send("another", { deduplicationId: "k" }),
    () => shared.queue("nowhere_at_all").send(1),
    () => shared.queue("no$name").send(1),
  ];
  const alone = [];
  for (const send of bad) alone.push(await errorOf(send()));

  const good = Array.from({ length: 50 }, (_, n) => orders.send(n));
  const errors = await Promise.all(bad.map((send) => errorOf(send())));

  assert.deepEqual(errors, alone);
  assert.equal(new Set((await Promise.all(good)).map(({ msgId }) => msgId)).size, 50);
  const digits = 5 as unknown as string;
  const others = [orders.send(1), orders.send(2), orders.send(3, { group: digits })];
  await assert.rejects(orders.send(1, { delay: Infinity }), RangeError);
  assert.equal((await Promise.all(others)).length, 3);
});

test("who gives up harms no other, and knows whether it has left", async () => {
  const orders = await queue(shared);
  const controller = new AbortController();
  const gone = AbortSignal.abort();

  const sends = Array.from({ length: 20 }, (_, n) => orders.send(n));
  const given = orders.send("given up", { signal: controller.signal });
  const never = orders.send("never begun", { signal: gone });
  controller.abort();

  const known = { code: "CANCELLED", outcomeUnknown: false };
  await Promise.all([assert.rejects(given, known), assert.rejects(never, known)]);
  await Promise.all(sends);
  assert.equal((await orders.metrics()).queueLength, 20);
});

test("a send that is not answered in time may be stored, unless it has never left", async () => {
  const way = await Way.open();
  const orders = await queue(client({}, way.address));
  await Promise.all([orders.send(1), orders.send(2)]);

  way.hold();
  const late = Array.from({ length: 5 }, () => orders.send(3, { timeoutMs: 300 }));
  const unknown = { code: "DEADLINE_EXCEEDED", outcomeUnknown: true };
  await Promise.all(late.map((send) => assert.rejects(send, unknown)));

  const openAgain = await way.close();
  // Whatever becomes of it: from then on, the client knows that the connection is gone.
  await assert.rejects(orders.send(4, { timeoutMs: 300 }));
  const [first, second] = [orders.send(5, { timeoutMs: 300 }), orders.send(6, { timeoutMs: 300 })];
  await Promise.all([
    assert.rejects(first, { outcomeUnknown: false }),
    assert.rejects(second, { code: "DEADLINE_EXCEEDED", outcomeUnknown: false }),
  ]);
  await openAgain();
  await Promise.all([orders.send(7), orders.send(8)]);
});

test("closing the client waits for sends that are under way, and takes no more", async () => {
  const closing = client();
  const orders = await queue(closing);
  const sends = Array.from({ length: 100 }, (_, n) => orders.send(n));

  await closing.close();

  assert.equal((await Promise.all(sends)).length, 100);
  assert.equal((await shared.queue(orders.name).metrics()).queueLength, 100);
  await assert.rejects(orders.send(1), { code: "CANCELLED", outcomeUnknown: false });
});

test("a stream that nobody sends over is closed, and another one opened when it is needed", async () => {
  const orders = await rested;
  await eventually("the stream is closed", () => resting.ended() === 1);

  await Promise.all([orders.send(3), orders.send(4)]);

  assert.deepEqual(resting.calls, ["Send", "Produce", "Send", "Produce"]);
});
