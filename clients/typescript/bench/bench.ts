/** What the client does in a second, and what plain SQL does over node-postgres with as many at once. */
import { setTimeout as sleep } from "node:timers/promises";
import { connect, type Queue } from "pgmq-grpc";
import { Server } from "../test/server.js";

const AT_ONCE = 64;
const SECONDS = 4;
const BODY = { order: 12345, kind: "a" };

const server = await Server.start();
const client = connect(server.address);
const pool = server.sql(AT_ONCE);
try {
  await measure();
} finally {
  await client.close();
  await pool.end();
  await server.stop();
}

async function measure(): Promise<void> {
  const queue = client.queue(`bench_${process.pid}`);
  await queue.create();
  const producer = queue.producer();
  const produced = await rate(() => producer.send(BODY));
  await producer.close();
  const sends = await rate(() => queue.send(BODY));
  const lone = await median(() => queue.send(BODY));
  const sqlSends = await rate(() => pool.query("SELECT pgmq.send($1, $2::jsonb)", [queue.name, BODY]));
  const sqlLone = await median(() => pool.query("SELECT pgmq.send($1, $2::jsonb)", [queue.name, BODY]));

  const read = "SELECT msg_id FROM pgmq.read($1, 30, 1)";
  await fill(queue, 40_000);
  const sqlWork = await rate(async () => {
    const { rows } = await pool.query<{ msg_id: string }>(read, [queue.name]);
    if (rows[0]) await pool.query("SELECT pgmq.delete($1, $2::bigint)", [queue.name, rows[0].msg_id]);
  });
  await fill(queue, 400_000);
  const work = await consume(queue);
  await queue.drop();

  print("sends/s, 64 at once, queue.send", sends, sqlSends, 3);
  print("sends/s, 64 at once, producer", produced, sqlSends, 3);
  print("consume and settle/s, 64 handlers", work, sqlWork, 6);
  console.log(`p50 of a lone send: ${lone.toFixed(2)} ms; node-postgres ${sqlLone.toFixed(2)} ms`);
}

function print(what: string, ours: number, theirs: number, goal?: number): void {
  const ratio = `${(ours / theirs).toFixed(1)} times${goal === undefined ? "" : `, goal ${goal}`}`;
  console.log(`${what}: ${Math.round(ours)}; node-postgres ${Math.round(theirs)} (${ratio})`);
}

/** How often something is done in a second by callers who each do it again and again. */
async function rate(once: () => Promise<unknown>): Promise<number> {
  const run = async (until: number): Promise<number> => {
    let count = 0;
    const caller = async () => {
      for (; Date.now() < until; count++) await once();
    };
    await Promise.all(Array.from({ length: AT_ONCE }, caller));
    return count;
  };
  await run(Date.now() + 500);
  const begun = performance.now();
  const count = await run(Date.now() + SECONDS * 1000);
  return count / ((performance.now() - begun) / 1000);
}

async function median(once: () => Promise<unknown>): Promise<number> {
  const times: number[] = [];
  for (let n = 0; n < 500; n++) {
    const begun = performance.now();
    await once();
    times.push(performance.now() - begun);
  }
  return times.sort((a, b) => a - b)[250] as number;
}

async function consume(queue: Queue): Promise<number> {
  let count = 0;
  const worker = queue.consume(
    () => {
      count++;
    },
    { concurrency: AT_ONCE, maxInFlight: 1000 },
  );
  await sleep(500);
  const [before, begun] = [count, performance.now()];
  await sleep(SECONDS * 1000);
  const result = (count - before) / ((performance.now() - begun) / 1000);
  await worker.stop();
  return result;
}

/** Makes the queue hold so many messages. */
async function fill(queue: Queue, messages: number): Promise<void> {
  const missing = messages - (await queue.metrics()).visibleLength;
  if (missing <= 0) return;
  await pool.query("SELECT pgmq.send_batch($1, array_agg($2::jsonb)) FROM generate_series(1, $3)", [
    queue.name,
    BODY,
    missing,
  ]);
}
