import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect as connectSocket, createServer as createSilent, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { createServer } from "node:tls";
import type { Interceptor } from "@connectrpc/connect";
import { connect, JsonText, PgmqError } from "pgmq-grpc";
import { client, eventually, queue, target, Way } from "./surroundings.js";

const shared = client();
const place = mkdtempSync(join(tmpdir(), "pgmq-"));
after(() => rmSync(place, { recursive: true }));

async function failure(call: Promise<unknown>): Promise<PgmqError> {
  const error: unknown = await call.then(
    () => assert.fail("the call has succeeded"),
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof PgmqError, String(error));
  return error;
}

test("an error tells its code, reason, field and request, and that nothing was applied", async () => {
  const orders = await queue(shared);

  const error = await failure(orders.sendBatch([{ message: 1 }, { message: new JsonText("{oops}") }]));

  assert.equal(error.code, "INVALID_ARGUMENT");
  assert.equal(error.reason, "INVALID_JSON");
  assert.equal(error.field, "messages[1].message");
  assert.equal(error.metadata.position, "1");
  assert.match(error.requestId ?? "", /^[\da-f-]{36}$/);
  assert.equal(error.outcomeUnknown, false);
  assert.equal(error.curable, false);
});

test("a target is host:port, dns or a Unix socket, and nothing else", async () => {
  const way = await Way.open(join(place, "socket"));
  const overSocket = client({}, way.address);
  const byName = client({}, `dns:///localhost:${target.split(":")[1]}`);

  assert.ok((await overSocket.getServerInfo()).serverVersion);
  assert.ok((await byName.getServerInfo()).serverVersion);
  for (const wrong of ["", "localhost", "http://localhost:1", "localhost:port"]) {
    assert.throws(() => connect(wrong), TypeError, wrong);
  }
});

test("TLS takes an authority of its own, and refuses others", async () => {
  const [key, cert] = [join(place, "key.pem"), join(place, "cert.pem")];
  const subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
  const files = ["-keyout", key, "-out", cert, "-days", "2"];
  execFileSync("openssl", ["req", "-x509", "-newkey", "rsa:2048", "-nodes", ...files, ...subject], { stdio: "pipe" });
  const [host, port] = target.split(":") as [string, string];
  const options = { key: readFileSync(key), cert: readFileSync(cert), ALPNProtocols: ["h2"] };
  const server = createServer(options, (socket) => {
    const onward = connectSocket(Number(port), host);
    socket
      .on("error", () => onward.destroy())
      .pipe(onward)
      .on("error", () => socket.destroy())
      .pipe(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  after(() => server.close());
  const address = `127.0.0.1:${(server.address() as AddressInfo).port}`;

  assert.ok((await client({ tls: { ca: cert } }, address).getServerInfo()).serverVersion);
  const refused = await failure(client({ tls: true }, address).getServerInfo({ timeoutMs: 2000 }));
  assert.equal(refused.code, "UNAVAILABLE");
  assert.equal(refused.outcomeUnknown, false);
});

test("a call that nobody takes has not left, and says so", async () => {
  const way = await Way.open();
  const alone = client({}, way.address);
  await way.close();

  const error = await failure(alone.queue("orders").send(1));

  assert.equal(error.code, "UNAVAILABLE");
  assert.equal(error.reason, undefined);
  assert.equal(error.outcomeUnknown, false);
});

test("a call is repeated until the server is there again", async () => {
  const way = await Way.open();
  const alone = client({}, way.address);
  const orders = await queue(alone);
  const openAgain = await way.close();

  const sent = orders.send({ total: 1 }, { idempotent: true });
  await openAgain();

  assert.equal((await sent).msgId, "1");
  assert.equal((await orders.metrics()).queueLength, 1);
});

test("what may be repeated is what the contract says", async () => {
  const config = JSON.parse(readFileSync(process.env.SERVICE_CONFIG ?? "", "utf8")) as {
    methodConfig: { name: { method: string }[] }[];
  };
  const listed = config.methodConfig.flatMap(({ name }) => name.map(({ method }) => method));
  const { REPEATABLE } = (await import(process.env.CALLS_MODULE ?? "")) as { REPEATABLE: Set<string> };

  // Read and Watch are streams: the client opens them again by itself.
  assert.deepEqual([...REPEATABLE].sort(), listed.filter((name) => name !== "Read" && name !== "Watch").sort());
});

test("a deadline ends a call, and its outcome is unknown", async () => {
  const silent = createSilent((socket) => socket.resume().on("error", () => undefined));
  await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve));
  const address = `127.0.0.1:${(silent.address() as AddressInfo).port}`;
  after(() => silent.close());

  const error = await failure(client({ timeoutMs: 200 }, address).queue("orders").send(1));

  assert.equal(error.code, "DEADLINE_EXCEEDED");
  assert.equal(error.outcomeUnknown, true);
});

test("a signal ends a call", async () => {
  const orders = await queue(shared);
  const controller = new AbortController();
  const reading = failure(orders.read({ wait: 40_000, signal: controller.signal }));
  controller.abort(new Error("enough"));

  const error = await reading;

  assert.equal(error.code, "CANCELLED");
  assert.equal((error.cause as Error).message, "enough");
});

test("metadata, a name and interceptors go with every call", async () => {
  const seen: (string | null)[] = [];
  const trace: Interceptor = (next) => (request) => {
    request.header.set("traceparent", "00-1");
    seen.push(request.method.name);
    return next(request);
  };
  let asked = 0;
  const metadata = () => Promise.resolve({ authorization: `Bearer ${++asked}` });
  const named = client({ clientName: "typescript tests", metadata, interceptors: [trace] });
  const orders = await queue(named);
  await orders.send(1);

  const clients = [];
  for await (const one of shared.listClients({ queue: orders.name })) clients.push(one);

  assert.deepEqual(
    clients.map(({ name, role }) => ({ name, role })),
    [{ name: "typescript tests", role: "PRODUCER" }],
  );
  assert.deepEqual(seen, ["CreateQueue", "Send"]);
  assert.equal(asked, 2);
});

test("several operations are one transaction, with results of their own types", async () => {
  const orders = await queue<{ n: number }>(shared);
  const done = await queue<{ n: number }>(shared);
  await orders.send({ n: 1 });
  const [message] = await orders.read();
  assert.ok(message);

  const { results, deduplicated } = await shared.transact([
    { delete: message },
    { send: { queue: done.name, message: { n: message.message.n + 1 } } },
  ]);

  assert.deepEqual(
    results[0].map(({ outcome }) => outcome),
    ["DONE"],
  );
  assert.equal(results[1].msgId, "1");
  assert.equal(deduplicated, false);
  const stale = await failure(shared.transact([{ archive: [message] }]));
  assert.equal(stale.reason, "RECEIPT_NOT_FOUND");
});

test("the generated stubs are there", async () => {
  const { queues } = shared.raw;

  assert.match((await queues.getServerInfo({})).serverVersion, /^\d/);
});

test("a watcher tells what happens, and goes on when the connection breaks", async () => {
  const way = await Way.open();
  const alone = client({}, way.address);
  const orders = await queue(alone);
  const watcher = await orders.watch().ready();
  const events = watcher[Symbol.asyncIterator]();
  await shared.queue(orders.name).send(1);
  assert.equal((await events.next()).value?.queue, orders.name);

  way.cut();
  await eventually("it watches again", () => way.connections === 2);
  const next = events.next();
  await shared.queue(orders.name).send(2);

  assert.ok((await next).value);
  await watcher.stop();
  const missing = { reason: "QUEUE_NOT_FOUND" };
  await assert.rejects(shared.watch(["nowhere_at_all"]).ready(), missing);
  await assert.rejects(shared.watch(["nowhere_at_all"])[Symbol.asyncIterator]().next(), missing);
});

test("a watch that no server confirms ends in time", async () => {
  const way = await Way.open();
  const away = client({ timeoutMs: 300 }, way.address);
  await way.close();

  await assert.rejects(away.watch(["orders"]).ready(), { code: "DEADLINE_EXCEEDED" });
  await assert.rejects(away.watch(["orders"])[Symbol.asyncIterator]().next(), { code: "DEADLINE_EXCEEDED" });
});
