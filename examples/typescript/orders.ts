/**
 * Orders come in, a worker takes them, what has failed too often goes aside, and what was archived is played once more.
 *
 * It runs against the server at PGMQ_GRPC_TARGET, and ends by itself. EXAMPLE_ROLE=intake only sends, EXAMPLE_ROLE=worker
 * only works, so that programs in several languages can share the queue ORDERS_QUEUE.
 */
import assert from "node:assert/strict";
import { type Client, connect, type Message, type Queue } from "pgmq-grpc";

interface Order {
  order: number;
  /** Money is text: null is what somebody's program has got wrong. */
  total: string | null;
  language: string;
}

const ORDERS = 20;
const POISON = 13;
const name = process.env.ORDERS_QUEUE ?? "orders";

await using client = connect(undefined, { clientName: "orders example (TypeScript)" });
const orders = client.queue<Order>(name);

switch (process.env.EXAMPLE_ROLE ?? "all") {
  case "intake":
    await takeIn(orders);
    break;
  case "worker":
    await work(orders, () => orders.metrics().then(({ queueLength }) => queueLength === 0));
    break;
  default:
    await everything(client, orders);
}

async function everything(client: Client, orders: Queue<Order>): Promise<void> {
  const failed = client.queue<Order>(`${name}_failed`);
  await failed.create();
  await orders.create({
    policy: {
      deadLetter: { queue: failed.name, maxReceives: 3 },
      retryBackoff: { minimum: 50, maximum: 200 },
    },
  });
  try {
    await takeIn(orders);
    const handled = await work(orders, () => orders.metrics().then(({ queueLength }) => queueLength === 0));
    assert.equal(handled, ORDERS - 1, "every order but one is handled");

    const [poison] = await failed.read();
    assert.equal(poison?.message.order, POISON);
    console.log(`order ${POISON} went to ${failed.name} after 3 tries`);
    await poison.delete();

    const { count } = await orders.replay();
    assert.equal(count, ORDERS - 1, "the archive is replayed");
    console.log(`replayed ${count} orders from the archive`);
    const again = await work(orders, () => orders.metrics().then(({ queueLength }) => queueLength === 0));
    assert.equal(again, ORDERS - 1, "what was replayed is handled again");
  } finally {
    await orders.drop();
    await failed.drop();
  }
}

/** Sends the orders of today, over one stream. An order that is sent twice is stored once. */
async function takeIn(orders: Queue<Order>): Promise<void> {
  await using producer = orders.producer();
  const run = Date.now();
  const sends = Array.from({ length: ORDERS }, (_, index) => {
    const order = index + 1;
    const total = order === POISON ? null : `${order}.50`;
    return producer.send({ order, total, language: "typescript" }, { deduplicationId: `typescript-${run}-${order}` });
  });
  const stored = await Promise.all(sends);
  console.log(`took in ${stored.length} orders`);
}

/** Works until there is nothing to do, and tells how many orders it has handled. */
async function work(orders: Queue<Order>, isDone: () => Promise<boolean>): Promise<number> {
  let handled = 0;
  const handle = ({ message, readCt }: Message<Order>) => {
    // An exception gives the message back, and the queue's policy says for how long, and how often.
    if (message.total === null) throw new Error(`order ${message.order} has no total, try ${readCt}`);
    handled++;
  };
  const worker = orders.consume(handle, { concurrency: 4, onSuccess: "archive" });
  while (!(await isDone())) await new Promise((resolve) => setTimeout(resolve, 100));
  await worker.stop();
  await worker.finished;
  console.log(`handled ${handled} orders`);
  return handled;
}
