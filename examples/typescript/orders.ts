/**
 * Orders come in, a worker bills them, and what was billed is archived and can be replayed.
 *
 * It runs against the server at PGMQ_GRPC_TARGET. ORDERS_QUEUE names the queue, which programs in other languages can
 * share. EXAMPLE_ROLE says what to do: `intake` sends orders, `worker` works until none has come for some seconds, and
 * `all`, without it, does everything on a queue of its own and cleans up.
 */
import assert from "node:assert/strict";
import { type Client, connect, type Message, type Queue } from "pgmq-grpc";

const ORDERS = 20;
const POISON = 13;
const IDLE_MS = 5000;

interface Order {
  order: number;
  /** Money is text, so that no language reads it as a float. The poison has none. */
  total: string | null;
  language: string;
}

/** Sends orders, many at once: they share a stream by themselves. */
async function intake(orders: Queue<Order>): Promise<void> {
  const sends = Array.from({ length: ORDERS }, (_, index) => {
    const order = index + 1;
    const total = order === POISON ? null : `${order}.50`;
    return orders.send({ order, total, language: "typescript" }, { idempotent: true });
  });
  console.log(`sent ${(await Promise.all(sends)).length} orders`);
}

/** Bills orders until enough are done, or none has come for a while. Tells how many it has billed. */
async function work(orders: Queue<Order>, enough = Infinity): Promise<number> {
  const billed: Record<string, number> = {};
  let [done, cents, retried, givenUp] = [0, 0, 0, 0];

  async function bill(message: Message<Order>): Promise<void> {
    quiet.refresh();
    const { order, total, language } = message.message;
    // The service that bills fails now and then, but not twice for one order.
    if (order % 5 === 0 && message.readCt === 1) {
      retried++;
      throw new Error("the billing service is busy");
    }
    if (total === null) {
      // No repetition cures this.
      await message.deadLetter({ reason: "it has no total" });
      givenUp++;
    } else {
      cents += Math.round(Number(total) * 100);
      billed[language] = (billed[language] ?? 0) + 1;
    }
    if (++done === enough) void worker.stop();
  }

  // Success archives the message. An exception gives it back, and the queue's policy says for how long.
  const worker = orders.consume(bill, { concurrency: 4, onSuccess: "archive" });
  const quiet = setTimeout(() => void worker.stop(), IDLE_MS);
  await worker.finished.finally(() => clearTimeout(quiet));
  const languages = JSON.stringify(billed);
  console.log(`billed ${languages} for ${(cents / 100).toFixed(2)}, retried ${retried}, gave up ${givenUp}`);
  return done - givenUp;
}

/** Shows the whole life of orders, and checks it. */
async function everything(client: Client, orders: Queue<Order>): Promise<void> {
  const failed = client.queue<Order>(`${orders.name}_failed`);
  await failed.create();
  await orders.create({
    policy: {
      deadLetter: { queue: failed.name, maxReceives: 5 },
      retryBackoff: { minimum: 100, maximum: 1000 },
    },
  });
  try {
    await intake(orders);
    assert.equal(await work(orders, ORDERS), ORDERS - 1, "every order but one is billed");

    const letters = await failed.read({ maxMessages: 10 });
    assert.deepEqual(
      letters.map(({ message }) => message.order),
      [POISON],
      "the poison is the only dead letter",
    );
    console.log(`order ${POISON} was given up:`, letters[0]?.headers?.["x-pgmq-dead-letter"]);
    await failed.delete(letters);

    const archived: string[] = [];
    for await (const { message } of orders.listArchivedMessages()) archived.push(message.msgId);
    console.log(`the archive holds ${archived.length} orders`);
    assert.equal(archived.length, ORDERS - 1, "every other order is archived");

    const { count } = await orders.replay({ msgIds: archived.slice(0, 1) });
    assert.equal(await work(orders, count), 1, "a replayed order is billed again");
  } finally {
    await orders.drop();
    await failed.drop();
  }
}

await using client = connect(undefined, { clientName: "orders of TypeScript" });
const orders = client.queue<Order>(process.env.ORDERS_QUEUE ?? "orders");
const role = process.env.EXAMPLE_ROLE ?? "all";
if (role === "all") await everything(client, orders);
else if (role === "intake") await intake(orders);
else if (role === "worker") await work(orders);
else throw new Error(`EXAMPLE_ROLE is ${role}: not all, intake or worker`);
