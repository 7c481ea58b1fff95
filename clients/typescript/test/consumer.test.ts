import assert from "node:assert/strict";
import { test } from "node:test";
import type { Logger, Message } from "pgmq-grpc";
import { client, eventually, queue, Way } from "./surroundings.js";

const shared = client();

test("leaving the loop gives back at once what was not handed over", async () => {
  const orders = await queue<number>(shared);
  await orders.sendBatch([1, 2, 3, 4, 5].map((message) => ({ message })));

  for await (const message of orders.consume({ visibilityTimeout: 3_600_000 })) {
    assert.equal(await message.delete(), "DONE");
    if (message.message === 2) break;
  }

  const again = await orders.read({ maxMessages: 10 });
  assert.deepEqual(
    again.map(({ message, readCt }) => [message, readCt]),
    [
      [3, 1],
      [4, 1],
      [5, 1],
    ],
  );
});

test("stopping finishes what is in hand", async () => {
  const orders = await queue<number>(shared);
  await orders.sendBatch([1, 2, 3].map((message) => ({ message })));
  const consumer = orders.consume({ maxInFlight: 1 });
  const messages = consumer[Symbol.asyncIterator]();
  const { value: message } = await messages.next();
  assert.ok(message);

  let stopped = false;
  const stopping = consumer.stop().then(() => (stopped = true));
  assert.equal((await messages.next()).done, true);
  assert.equal(stopped, false, "it has not waited for the message in hand");
  assert.equal(await message.archive(), "DONE");
  await stopping;

  assert.equal((await orders.metrics({ includeArchive: true })).archiveLength, 1);
  assert.equal((await orders.metrics()).queueLength, 2);
});

test("what is in hand is kept and settled over a stream that was opened anew", async () => {
  const way = await Way.open();
  const orders = await queue<number>(client({}, way.address));
  await orders.sendBatch([1, 2, 3, 4].map((message) => ({ message })));
  const consumer = orders.consume({ visibilityTimeout: 2000, maxInFlight: 3 });
  const messages = consumer[Symbol.asyncIterator]();
  const held = [await messages.next(), await messages.next()].map(({ value }) => value);

  way.cut();
  const third = await messages.next();
  const metrics = () => shared.queue(orders.name).metrics();
  await eventually("the new stream has the last one", async () => (await metrics()).inFlightLength === 4);
  // Longer than the visibility timeout: nobody else may get what is in hand meanwhile.
  assert.deepEqual(await shared.queue(orders.name).read({ wait: 3000 }), []);

  assert.equal(await held[0]?.delete(), "DONE");
  assert.equal(await held[1]?.delete(), "DONE");
  assert.equal(await third.value?.delete(), "DONE");
  const last = await messages.next();
  assert.equal(await last.value?.delete(), "DONE");
  assert.deepEqual([third.value?.message, last.value?.message], [3, 4]);
  await consumer.stop();
  assert.equal((await shared.queue(orders.name).metrics()).queueLength, 0);
});

test("while there is no stream, messages are settled by unary calls", async () => {
  const orders = await queue<number>(shared);
  await orders.send(1);
  const consumer = orders.consume();
  const messages = consumer[Symbol.asyncIterator]();
  const { value: message } = await messages.next();

  await consumer.stop({ timeoutMs: 0 });

  assert.equal(await message?.delete(), "DONE");
});

test("an error that no repetition cures ends the loop", async () => {
  const missing = shared.queue("nowhere_at_all");

  await assert.rejects(
    async () => {
      for await (const message of missing.consume()) assert.fail(`there is ${message.msgId}`);
    },
    { code: "NOT_FOUND", reason: "QUEUE_NOT_FOUND", metadata: { queue: "nowhere_at_all" } },
  );
  await assert.rejects(missing.consume(() => undefined).finished, { reason: "QUEUE_NOT_FOUND" });
});

test("what cannot be sent is refused at once, and spoils nothing", async () => {
  const orders = await queue<number>(shared);
  await orders.sendBatch([{ message: 1 }, { message: 2 }]);
  assert.throws(() => orders.consume({ visibilityTimeout: NaN }), RangeError);
  assert.throws(() => orders.consume({ ordering: "NONE" as "GROUPED" }), TypeError);
  const broken = orders.consume({ maxInFlight: 1.5 })[Symbol.asyncIterator]();
  await assert.rejects(broken.next(), { code: "INVALID_ARGUMENT", outcomeUnknown: false });

  await using consumer = orders.consume();
  const messages = consumer[Symbol.asyncIterator]();
  const [first, second] = [await messages.next(), await messages.next()].map(({ value }) => value);
  const settled = await Promise.allSettled([first?.delete(), second?.release({ delay: NaN }), second?.archive()]);

  assert.deepEqual(
    settled.map((one) => (one.status === "fulfilled" ? one.value : (one.reason as Error).name)),
    ["DONE", "RangeError", "DONE"],
  );
});

test("a handler's success archives, its exception releases, and its own settling stands", async () => {
  const lines: string[] = [];
  const say = (line: string) => lines.push(line);
  const logger: Logger = { debug: say, info: say, warn: say };
  const orders = await queue<string>(client({ logger }));
  await orders.sendBatch(["good", "bad", "own"].map((message) => ({ message })));
  const controller = new AbortController();
  const handled: string[] = [];

  const worker = orders.consume(
    async (message) => {
      handled.push(message.message);
      if (message.message === "own") await message.delete();
      if (message.message === "bad" && message.readCt < 3) throw new Error("not yet");
    },
    { concurrency: 2, onSuccess: "archive", retryDelay: 50, signal: controller.signal },
  );
  await eventually("the queue is empty", async () => (await orders.metrics()).queueLength === 0);
  controller.abort();
  await worker.finished;

  assert.deepEqual(handled.sort(), ["bad", "bad", "bad", "good", "own"]);
  const archived = [];
  for await (const { message } of orders.listArchivedMessages()) archived.push(message.message);
  assert.deepEqual(archived, ["good", "bad"]);
  assert.ok(lines.some((line) => line.includes("the handler has failed") && line.includes("not yet")));
});

test("a worker runs as many handlers at once as it was told", async () => {
  const orders = await queue<number>(shared);
  await orders.sendBatch(Array.from({ length: 30 }, (_, message) => ({ message })));
  let running = 0;
  let most = 0;
  let finish: () => void = () => undefined;
  const all = new Promise<void>((resolve) => (finish = resolve));

  await using worker = orders.consume(
    async () => {
      most = Math.max(most, ++running);
      if (running === 5) finish();
      await all;
      running--;
    },
    { concurrency: 5 },
  );
  await eventually("the queue is empty", async () => (await orders.metrics()).queueLength === 0);

  assert.equal(most, 5);
  await worker.stop();
});

test("a handler that fails waits as the queue's backoff says, or else as the client says", async () => {
  const retryBackoff = { minimum: 600_000, maximum: 600_000, jitter: 0 };
  const [plain, backing] = [await queue(shared), await queue(shared, { policy: { retryBackoff } })];
  const given = await queue(shared);
  const hidden = async (of: typeof plain, retryDelay?: number): Promise<number> => {
    await of.send(1);
    const fail = () => {
      throw new Error("not today");
    };
    const worker = of.consume(fail, { retryDelay });
    let span = 0;
    await eventually("it is released", async () => {
      for await (const { vt, lastReadAt } of of.listMessages())
        span = lastReadAt ? vt.getTime() - lastReadAt.getTime() : 0;
      // While it is in hand, that is the visibility timeout.
      return span !== 0 && Math.abs(span - 30_000) > 1000;
    });
    await worker.stop();
    return span;
  };

  assert.ok((await hidden(backing)) >= 600_000);
  assert.ok((await hidden(given, 900_000)) >= 900_000);
  const own = await hidden(plain);
  assert.ok(own >= 800 && own < 29_000, String(own));
});

test("a worker that has failed says so in the log, and to whoever waits for it", async () => {
  const lines: string[] = [];
  const say = (line: string) => lines.push(line);
  const logged = client({ logger: { debug: say, info: say, warn: say } });

  const worker = logged.queue("nowhere_at_all").consume(() => undefined);
  // Nobody has asked for `finished` until then: an unhandled rejection would end the test.
  await eventually("the log has it", () => lines.some((line) => line.includes("it has ended")));
  await worker.stop();

  await assert.rejects(worker.finished, { reason: "QUEUE_NOT_FOUND" });
});

test("what is settled during an outage is settled once there is a stream again", async () => {
  const way = await Way.open();
  const lines: string[] = [];
  const say = (line: string) => lines.push(line);
  const orders = await queue<number>(client({ logger: { debug: say, info: say, warn: say } }, way.address));
  await orders.sendBatch(Array.from({ length: 5 }, (_, message) => ({ message })));
  const messages = orders.consume({ visibilityTimeout: 600_000 })[Symbol.asyncIterator]();
  const held: Message<number>[] = [];
  while (held.length < 5) {
    const next = await messages.next();
    assert.ok(!next.done);
    held.push(next.value);
  }

  const openAgain = await way.close();
  const settled = Promise.all(held.map((message) => message.delete()));
  await eventually("there is no way", () => lines.some((line) => line.includes("waits for the next stream")));
  await openAgain();

  assert.deepEqual(await settled, ["DONE", "DONE", "DONE", "DONE", "DONE"]);
  assert.equal((await orders.metrics()).queueLength, 0);
  await messages.return?.();
});
