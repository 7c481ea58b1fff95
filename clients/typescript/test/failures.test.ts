/** What needs a server and a database of its own, because they are killed, or made to refuse. */
import assert from "node:assert/strict";
import { after, test } from "node:test";
import type { PgmqError } from "pgmq-grpc";
import { client, eventually } from "./surroundings.js";
import { PROGRAM, Server } from "./server.js";

const options = { skip: PROGRAM === undefined && "PGMQ_GRPC_SERVER names no program" };
const server = PROGRAM === undefined ? undefined : await Server.start();
const sql = server?.sql(2);
after(async () => {
  await sql?.end();
  await server?.stop();
});

test(
  "sends with an id are stored once while the server is killed, and others know that they may be",
  options,
  async () => {
    const orders = client({}, server?.address).queue<{ caller: number; n: number }>("sends");
    await orders.create();
    let [stored, failed] = [0, 0];
    const caller = async (caller: number) => {
      const keyed = caller % 2 === 0;
      for (let n = 0; n < 100; n++) {
        await orders.send({ caller, n }, { idempotent: keyed }).then(
          () => stored++,
          (error: unknown) => {
            assert.ok(!keyed && (error as PgmqError).outcomeUnknown, String(error));
            failed++;
          },
        );
      }
    };
    const callers = Array.from({ length: 40 }, (_, index) => caller(index));
    for (const mark of [500, 2000]) {
      await eventually(`${mark} are stored`, () => stored + failed >= mark);
      await server?.killAndStart();
    }
    await Promise.all(callers);

    const { queueLength } = await orders.metrics();
    assert.ok(queueLength >= stored && queueLength <= stored + failed, `${queueLength}, ${stored} and ${failed}`);
    const counted = await sql?.query(
      "SELECT count(*)::int AS all, count(DISTINCT message)::int AS different FROM pgmq.q_sends WHERE (message->>'caller')::int % 2 = 0",
    );
    assert.deepEqual(counted?.rows, [{ all: 2000, different: 2000 }]);
  },
);

test("a message that the database refuses to settle spoils no other's settling", options, async () => {
  const refused = client({}, server?.address).queue<number>("refused");
  await refused.create();
  await sql?.query(`
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF old.message = '2'::jsonb THEN RAISE EXCEPTION 'two stays'; END IF;
      RETURN old;
    END $$;
    CREATE TRIGGER refuse BEFORE DELETE ON pgmq.q_refused FOR EACH ROW EXECUTE FUNCTION refuse();
  `);
  const error = { code: "FAILED_PRECONDITION", reason: "REFUSED_BY_DATABASE" };
  await refused.sendBatch([1, 2, 3, 4].map((message) => ({ message })));

  await using consumer = refused.consume();
  const iterator = consumer[Symbol.asyncIterator]();
  const messages = [];
  while (messages.length < 4) messages.push((await iterator.next()).value);
  // Somebody else deletes one meanwhile, which the refused command might have done as well.
  await refused.delete({ msgIds: [4] });
  const outcomes = await Promise.allSettled(messages.map(async (message) => message?.delete()));
  assert.deepEqual(
    outcomes.map((outcome) => (outcome.status === "fulfilled" ? outcome.value : "refused")),
    ["DONE", "refused", "DONE", "DONE"],
  );
  const { code, reason, outcomeUnknown } = (outcomes[1] as PromiseRejectedResult).reason as PgmqError;
  assert.deepEqual({ code, reason, outcomeUnknown }, { ...error, outcomeUnknown: false });

  await assert.rejects(refused.delete({ msgIds: [2] }), { ...error, outcomeUnknown: false });
  await assert.rejects(refused.delete({ msgIds: [2, 999] }), { ...error, outcomeUnknown: true });
});

test("a message that a worker cannot settle comes back, and frees its place", options, async () => {
  const kept = client({}, server?.address).queue<number>("kept");
  await kept.create();
  await sql?.query(`
    CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF old.message = '1'::jsonb THEN RAISE EXCEPTION 'one stays'; END IF;
      RETURN old;
    END $$;
    CREATE TRIGGER keep BEFORE DELETE ON pgmq.q_kept FOR EACH ROW EXECUTE FUNCTION keep();
  `);
  await kept.sendBatch([{ message: 1 }, { message: 2 }]);
  const handled: string[] = [];

  const worker = kept.consume((message) => handled.push(`${message.message} for the ${message.readCt}`), {
    maxInFlight: 1,
    visibilityTimeout: 1000,
  });
  await eventually("both are handled, and the refused one again", () =>
    ["2 for the 1", "1 for the 2"].every((one) => handled.includes(one)),
  );
  await worker.stop();
});
