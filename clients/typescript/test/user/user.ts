/** What a user writes, and what the types keep him from. It is compiled only, against the package as it is published. */
import { connect, type Consumer, type Message, type Operation, type Queue, type Worker } from "pgmq-grpc";

interface Order {
  order: number;
}

await using client = connect();
const orders: Queue<Order> = client.queue<Order>("orders");
const worker: Worker<Order> = orders.consume(({ message }) => message.order, { concurrency: 8 });
const consumer: Consumer<Order> = orders.consume({ maxInFlight: 50 });

async function every(): Promise<void> {
  for await (const message of consumer) await done(message);
}

async function done(message: Message<Order>): Promise<void> {
  const send = { queue: "shipments", message: message.message };
  const { results } = await client.transact([{ delete: message }, { send }, { release: [message], delay: 5 }]);
  results[0][0]?.outcome.toLowerCase();
  results[1].msgId.toLowerCase();

  // @ts-expect-error An operation does one thing.
  const both: Operation = { send, delete: message };
  // @ts-expect-error An operation does something.
  const none: Operation = {};
  // @ts-expect-error Only a release has a delay.
  const late: Operation = { delete: message, delay: 5 };
  await client.transact([both, none, late]);
  // @ts-expect-error An operation does one thing, where it is written in place, too.
  await client.transact([{ send, delete: { queue: "orders", msgIds: [1] } }]);
}

await Promise.all([every(), worker.finished]);
