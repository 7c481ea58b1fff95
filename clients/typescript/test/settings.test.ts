import assert from "node:assert/strict";
import { test } from "node:test";
import { connect, JsonText, type Operation } from "pgmq-grpc";
import { client, eventually, queue, target } from "./surroundings.js";

const shared = client();

test("settings that cannot be are refused before anything begins", async () => {
  const orders = await queue<number>(shared);
  await orders.send(1);
  const never = () => assert.fail("a handler has run");

  for (const concurrency of [0, -1, NaN, 1.5, "4" as unknown as number]) {
    assert.throws(() => orders.consume(never, { concurrency }), RangeError, String(concurrency));
  }
  for (const retryDelay of [-1, NaN, Infinity]) {
    assert.throws(() => orders.consume(never, { retryDelay }), RangeError, String(retryDelay));
  }
  assert.throws(() => orders.consume(never, { onSuccess: "remove" as "delete" }), TypeError);
  for (const maxUnanswered of [0, -1, NaN]) {
    assert.throws(() => orders.producer({ maxUnanswered }), RangeError, String(maxUnanswered));
  }
  for (const timeoutMs of [-1, NaN]) {
    assert.throws(() => connect(target, { timeoutMs }), RangeError);
    assert.throws(() => orders.producer({ timeoutMs }), RangeError);
    assert.throws(() => orders.consume().stop({ timeoutMs }), RangeError);
    await assert.rejects(orders.send(2, { timeoutMs }), RangeError);
    await assert.rejects(orders.read({ timeoutMs }), RangeError);
  }
  assert.equal((await orders.metrics()).visibleLength, 1);
});

test("what excludes each other is refused, and not done in part", async () => {
  const orders = await queue<number>(shared);
  const both = { delay: 60_000, visibleAt: new Date() };
  const queueOf = { queue: orders.name };

  await assert.rejects(orders.send(1, both), TypeError);
  await assert.rejects(shared.validateName({ queue: "a", pattern: "b" }), TypeError);
  const send = { ...queueOf, message: 1 };
  const wrong: unknown[] = [
    { send, delete: { ...queueOf, msgIds: [1] } },
    {},
    { nothing: 1 },
    { send: undefined },
    { delete: { ...queueOf, msgIds: [1] }, delay: 5 },
    { setVisibilityTimeout: { ...queueOf, msgIds: [1] }, visibilityTimeout: 5, visibleAt: new Date() },
  ];
  for (const one of wrong) {
    await assert.rejects(shared.transact([{ send }, one as Operation]), TypeError, JSON.stringify(one));
  }
  assert.equal((await orders.metrics()).queueLength, 0);
});

test("no time is too long, and none means without a limit", async () => {
  const warnings: Error[] = [];
  process.on("warning", (warning) => warnings.push(warning));
  for (const timeoutMs of [0, 2 ** 31, 1e15, Infinity]) {
    const patient = client({ timeoutMs });
    const orders = await queue<number>(patient);
    await Promise.all([orders.send(1), orders.send(2), orders.send(3, { timeoutMs })]);
    const worker = orders.consume(() => undefined);
    await eventually("all are handled", async () => (await orders.metrics()).queueLength === 0);
    await worker.stop({ timeoutMs });
  }
  assert.deepEqual(warnings, []);
});

test("what JSON cannot say is refused", async () => {
  const orders = await queue(shared);

  for (const value of [NaN, Infinity, { price: -Infinity }, [NaN]]) {
    await assert.rejects(orders.send(value), RangeError);
  }
  await assert.rejects(orders.send({ price: new JsonText("1.10") }), TypeError);
  assert.equal((await orders.metrics()).queueLength, 0);
});

test("what has not left is not unknown", async () => {
  const orders = await queue(shared);
  const signal = AbortSignal.abort();
  await assert.rejects(orders.read({ signal }), { code: "CANCELLED", outcomeUnknown: false });
  await assert.rejects(orders.send(1, { signal }), { code: "CANCELLED", outcomeUnknown: false });

  const refused = { code: "INVALID_ARGUMENT", outcomeUnknown: false };
  for (const metadata of [{ "Bad Key": "x" }, { key: "x\ny" }, { key: "ü" }]) {
    assert.throws(() => connect(target, { metadata }), refused);
    const late = client({ metadata: () => metadata });
    await assert.rejects(late.queue(orders.name).send(1), refused);
  }
  assert.throws(() => connect(target, { clientName: "ü\n" }), refused);
  const failing = client({
    metadata: () => {
      throw new Error("no token");
    },
  });
  await assert.rejects(failing.queue(orders.name).send(1), { code: "UNAVAILABLE", outcomeUnknown: false });
  const nowhere = client({}, "nobody.invalid:1");
  await assert.rejects(nowhere.queue("orders").send(1), { code: "UNAVAILABLE", outcomeUnknown: false });
  assert.equal((await orders.metrics()).queueLength, 0);
});
