import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { test } from "node:test";
import { promisify } from "node:util";
import { connect } from "pgmq-grpc";
import { client, eventually, queue, target } from "./surroundings.js";

const shared = client();
const CLOSED = { code: "CANCELLED", message: "the client is closed", outcomeUnknown: false };

test("whatever is asked of a closed client is refused at once, and nothing is sent", async () => {
  const closing = connect(target);
  const orders = await queue<number>(shared);
  await orders.send(7);
  const closedOrders = closing.queue<number>(orders.name);
  const [held] = await closedOrders.read({ visibilityTimeout: 3_600_000 });
  const producer = closedOrders.producer();
  const [consumer, watcher] = [closedOrders.consume(), closedOrders.watch()];

  await closing.close();
  await closing.close();

  const asked: (() => unknown)[] = [
    () => closedOrders.send(1),
    () => closedOrders.sendBatch([{ message: 1 }]),
    () => closedOrders.read(),
    () => closedOrders.pop(),
    () => closedOrders.metrics(),
    () => closedOrders.purge(),
    () => closedOrders.producer(),
    () => producer.send(1),
    () => closedOrders.consume(() => undefined),
    () => closedOrders.consume(),
    () => consumer[Symbol.asyncIterator]().next(),
    () => closedOrders.watch(),
    () => watcher.ready(),
    () => watcher[Symbol.asyncIterator]().next(),
    () => held?.delete(),
    () => closing.listQueues().next(),
    () => closing.transact([{ send: { queue: orders.name, message: 1 } }]),
    () => closing.sendTopic("a.b", 1),
    () => closing.getServerInfo(),
  ];
  // What is refused by throwing at once, and by a promise, is the same to who awaits it.
  for (const ask of asked) await assert.rejects(async () => await ask(), CLOSED, String(ask));
  await assert.rejects(closing.raw.queues.getServerInfo({}), /the client is closed/);
  assert.equal((await orders.metrics()).queueLength, 1);
});

test("closing stops what is open, and waits for handlers and loops as stopping does", async () => {
  const closing = connect(target);
  const [worked, looped] = [await queue<number>(shared), await queue<number>(shared)];
  await worked.sendBatch([{ message: 1 }, { message: 2 }]);
  await looped.sendBatch([{ message: 1 }, { message: 2 }]);
  const begun: string[] = [];
  let finish: () => void = () => undefined;
  const allowed = new Promise<void>((resolve) => (finish = resolve));
  const worker = closing.queue<number>(worked.name).consume(async () => {
    begun.push("handler");
    await allowed;
  });
  const loop = (async () => {
    for await (const message of closing.queue<number>(looped.name).consume()) {
      begun.push("loop");
      await allowed;
      assert.equal(await message.delete(), "DONE");
    }
  })();
  const watching = closing.watch([worked.name])[Symbol.asyncIterator]().next();
  await eventually("both have begun", () => begun.length === 2);

  let closed = false;
  const closes = closing.close().then(() => (closed = true));
  await eventually("the rest is given back", async () => (await looped.metrics()).visibleLength === 1);
  assert.equal(closed, false, "it has not waited for the handler");
  finish();
  await Promise.all([closes, worker.finished, loop]);

  while (!(await watching).done) assert.fail("nothing has happened to the queue since");
  assert.deepEqual(begun.sort(), ["handler", "loop"]);
  for (const one of [worked, looped]) {
    const { queueLength, visibleLength } = await one.metrics();
    assert.deepEqual({ queueLength, visibleLength }, { queueLength: 1, visibleLength: 1 });
  }
});

test("a call that is under way is ended by closing, and nothing keeps the process", async () => {
  const orders = await queue(shared);
  const program = `
    import { connect } from "pgmq-grpc";
    const client = connect(process.argv[1]);
    const orders = client.queue(process.argv[2]);
    const worker = orders.consume(() => undefined);
    await orders.send(1);
    const reading = orders.read({ wait: 20_000 }).catch((error) => console.log(error.message));
    await client.close();
    await worker.finished;
    await reading;
  `;
  const inThePackage = { cwd: import.meta.dirname, timeout: 30_000 };
  const args = ["--input-type=module", "-e", program, target, orders.name];

  const { stdout } = await promisify(execFile)(process.execPath, args, inThePackage);

  assert.match(stdout, /^(the client is closed\n)?$/);
});
