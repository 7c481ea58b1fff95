/** The words of cases, each made of the client's own. */
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import {
  type Client,
  connect,
  type ConnectOptions,
  JsonText,
  type Message,
  type Operation,
  type Outcome,
  type OutgoingMessage,
  PgmqError,
  Producer,
  type QueueEvent,
  type Targets,
} from "pgmq-grpc";
import type { OpenTransactionRequestSchema } from "pgmq-grpc/gen/pgmq/v1/transaction_service_pb";
import { camel, isMap, messageOf, type Plain } from "./values.js";

/** A stream that a case has opened, with what it has asked of it and not got yet. */
class Stream<T> {
  readonly #iterator: AsyncIterator<T>;
  #pending: Promise<IteratorResult<T>> | undefined;

  constructor(
    readonly of: { stop(): Promise<void> },
    iterable: AsyncIterable<T>,
  ) {
    this.#iterator = iterable[Symbol.asyncIterator]();
    this.#next().catch(() => undefined);
  }

  /** What came until there was enough, or the time was up. */
  async take(count: number, seconds: number): Promise<T[]> {
    const items: T[] = [];
    const limit = new AbortController();
    const late = sleep(seconds * 1000, undefined, { signal: limit.signal }).catch(() => undefined);
    while (items.length < count) {
      const result = await Promise.race([this.#next(), late]);
      if (!result) break;
      this.#pending = undefined;
      if (result.done) break;
      items.push(result.value);
    }
    limit.abort();
    return items;
  }

  #next(): Promise<IteratorResult<T>> {
    this.#pending ??= this.#iterator.next();
    return this.#pending;
  }
}

/** What belongs to one case. */
export interface Surroundings {
  client: Client;
  /** Closes what the case has opened. */
  cleanups: (() => Promise<unknown>)[];
}

type Word = (given: Plain, around: Surroundings) => unknown;

let endedServer: number | undefined;

const queueOf = (given: Plain, { client }: Surroundings) => client.queue(given.queue as string);

/** A message with its texts taken for what they are. */
function outgoing({ message, messageText, headers, headersText, ...rest }: Plain): OutgoingMessage {
  return {
    ...rest,
    message: typeof messageText === "string" ? new JsonText(messageText) : message,
    headers: typeof headersText === "string" ? new JsonText(headersText) : (headers as Record<string, unknown>),
  };
}

const batch = ({ messages, idempotent }: Plain): OutgoingMessage[] =>
  (messages as Plain[]).map((message) => outgoing({ idempotent, ...message }));

/** What is settled: messages, or receipts or ids as they are given. */
function targets({ messages, receipts, msgIds }: Plain): Targets {
  if (messages !== undefined) return (messages as unknown[]).map(messageOf) as Message<never>[];
  return { receipts: receipts as string[], msgIds: msgIds as number[] };
}

const outcomes = async (results: Promise<{ outcome: Outcome }[]>) => (await results).map(({ outcome }) => outcome);

async function all<T>(list: AsyncIterable<T>): Promise<T[]> {
  const items: T[] = [];
  for await (const item of list) items.push(item);
  return items;
}

function operation(given: Plain): Operation {
  const [[word, argument] = ["", {}]] = Object.entries(given) as [string, Plain][];
  if (word === "send" || word === "sendTopic") return { [word]: outgoing(argument) } as Operation;
  if (word === "sendBatch") return { sendBatch: { queue: argument.queue as string, messages: batch(argument) } };
  const { queue, messages, receipts, msgIds, ...rest } = argument;
  const settled =
    messages === undefined || (messages as unknown[]).length === 0 ? { queue, receipts, msgIds } : targets(argument);
  return { [word]: settled, ...rest } as Operation;
}

function take<T>(stream: unknown, { count, within = 10 }: Plain): Promise<T[]> {
  return (stream as Stream<T>).take(count as number, within as number);
}

async function produce(producer: Producer, given: Plain): Promise<unknown[]> {
  const results = await Promise.allSettled(
    batch(given).map(({ message, ...settings }) => producer.send(message, settings)),
  );
  return results.map((result) => (result.status === "fulfilled" ? result.value : { error: result.reason as unknown }));
}

async function handle(given: Plain, around: Surroundings): Promise<{ deliveries: unknown[] }> {
  const { count = Infinity, deliveries: most = Infinity, failFirst = 0, action, ...options } = given;
  const deliveries: unknown[] = [];
  const seen = new Map<string, number>();
  let successes = 0;
  const worker = queueOf(given, around).consume(
    (message) => {
      deliveries.push(message.message);
      const times = (seen.get(message.msgId) ?? 0) + 1;
      seen.set(message.msgId, times);
      const success = times > (failFirst as number);
      if (success) successes++;
      if (successes >= (count as number) || deliveries.length >= (most as number)) void worker.stop();
      if (!success) throw new Error("the case lets the handler fail");
    },
    { ...options, onSuccess: action as "delete" | "archive" | undefined },
  );
  around.cleanups.push(() => worker.stop({ timeoutMs: 0 }));
  await worker.finished;
  return { deliveries };
}

export const WORDS: Record<string, Word> = {
  create_queue: ({ queue, ...options }, { client }) => client.createQueue(queue as string, options),
  get_queue: (given, around) => queueOf(given, around).get(given),
  list_queues: (given, { client }) => all(client.listQueues(given)),
  update_queue: (given, around) => {
    const cleared = Object.fromEntries(((given.clear ?? []) as string[]).map((name) => [camel(name), null]));
    return queueOf(given, around).update({ ...(given.policy as Plain), ...cleared }, given);
  },
  drop_queue: (given, around) => queueOf(given, around).drop(given),
  purge_queue: (given, around) => queueOf(given, around).purge(given),
  get_queue_metrics: (given, around) => queueOf(given, around).metrics(given),
  list_queue_metrics: (given, { client }) => all(client.listQueueMetrics(given)),
  set_queue_layout: ({ queue, layout, ...options }, { client }) =>
    client.setQueueLayout(queue as string, layout as never, options),
  send: (given, around) => {
    const { message, ...settings } = outgoing(given);
    return queueOf(given, around).send(message, settings);
  },
  send_batch: (given, around) =>
    queueOf(given, around).sendBatch(batch(given), { timeoutMs: given.timeoutMs as number }),
  read: (given, around) => queueOf(given, around).read(given),
  pop: (given, around) => queueOf(given, around).pop(given),
  delete: (given, around) => outcomes(queueOf(given, around).delete(targets(given), given)),
  archive: (given, around) => outcomes(queueOf(given, around).archive(targets(given), given)),
  release: (given, around) => outcomes(queueOf(given, around).release(targets(given), given)),
  dead_letter: (given, around) => outcomes(queueOf(given, around).deadLetter(targets(given), given)),
  set_visibility_timeout: (given, around) =>
    outcomes(
      queueOf(given, around).setVisibilityTimeout(
        targets(given),
        (given.visibleAt ?? given.visibilityTimeout) as number | Date,
        given,
      ),
    ),
  transact: async ({ operations, ...options }, { client }) => {
    const given = operations as Plain[];
    const { results, deduplicated } = await client.transact(given.map(operation), options);
    const named = results.map((result: unknown, index) => {
      const word = Object.keys(given[index] as Plain)[0] as string;
      const settled = Array.isArray(result) && word !== "sendBatch";
      return { [word]: settled ? result.map(({ outcome }: { outcome: Outcome }) => outcome) : result };
    });
    return { results: named, deduplicated };
  },
  validate_name: (given, { client }) => client.validateName(given as { queue: string }),
  get_server_info: (given, { client }) => client.getServerInfo(given),
  bind_topic: async (given, { client }) => ({
    created: await client.bindTopic(given.pattern as string, given.queue as string),
  }),
  unbind_topic: async (given, { client }) => ({
    removed: await client.unbindTopic(given.pattern as string, given.queue as string),
  }),
  list_topic_bindings: (given, { client }) => all(client.listTopicBindings(given)),
  test_routing: (given, { client }) => client.testRouting(given.routingKey as string),
  send_topic: (given, { client }) => {
    const { message, ...settings } = outgoing(given);
    return client.sendTopic(given.routingKey as string, message, settings);
  },
  send_topic_batch: (given, { client }) => client.sendTopicBatch(given.routingKey as string, batch(given), given),
  list_messages: (given, around) => all(queueOf(given, around).listMessages(given)),
  list_archived_messages: async (given, around) => {
    const archived = await all(queueOf(given, around).listArchivedMessages(given));
    return archived.map(({ message, archivedAt }) => ({ archived: message, archivedAt }));
  },
  delete_archived_messages: async (given, around) => {
    const { count, more } = await queueOf(given, around).deleteArchivedMessages(given);
    return { deletedCount: count, more };
  },
  replay: async (given, around) => {
    const { count, more } = await queueOf(given, around).replay(given);
    return { replayedCount: count, more };
  },
  redrive: async (given, { client }) => {
    const { count, more } = await client.queue(given.deadLetterQueue as string).redrive(given);
    return { movedCount: count, more };
  },
  create_fifo_index: (given, { client }) => client.createFifoIndex(given as { queue: string }),
  convert_archive_partitioned: ({ queue, ...options }, { client }) =>
    client.convertArchivePartitioned(queue as string, options),
  enable_notifications: ({ queue, ...options }, { client }) => client.enableNotifications(queue as string, options),
  update_notifications: ({ queue, ...options }, { client }) => client.updateNotifications(queue as string, options),
  disable_notifications: ({ queue }, { client }) => client.disableNotifications(queue as string),
  list_notifications: (given, { client }) => all(client.listNotifications(given)),
  list_clients: (given, { client }) => all(client.listClients(given)),
  install_pgmq: (given, { client }) => client.installPgmq(given),
  connect: ({ name, metadata }, { cleanups }) => {
    const options = { clientName: name, metadata } as ConnectOptions;
    const client = connect(undefined, options);
    cleanups.push(() => client.close());
    return client;
  },
  settle: ({ message, action, delay, reason, visibilityTimeout }) => {
    const settled = messageOf(message);
    switch (action) {
      case "release":
        return settled.release({ delay: delay as number });
      case "dead_letter":
        return settled.deadLetter({ reason: reason as string });
      case "extend":
        return settled.extend(visibilityTimeout as number);
      default:
        return settled[action as "delete" | "archive"]();
    }
  },
  consume: (given, around) => {
    const of = queueOf(given, around).consume(given);
    around.cleanups.push(() => of.stop({ timeoutMs: 0 }));
    return new Stream<Message>(of, of);
  },
  take: (given) => take<Message>(given.consumer, given),
  stop: ({ consumer }) => (consumer as Stream<Message>).of.stop(),
  handle,
  watch: async (given, around) => {
    const of = around.client.watch(given.queues as string[]);
    around.cleanups.push(() => of.stop());
    await of.ready();
    return new Stream<QueueEvent>(of, of);
  },
  events: (given) => take<QueueEvent>(given.watcher, given),
  producer: (given, around) => {
    const producer = queueOf(given, around).producer({ idempotent: given.idempotent as boolean });
    around.cleanups.push(() => producer.close());
    return producer;
  },
  produce: async (given, around) => {
    if (given.producer instanceof Producer) return produce(given.producer, given);
    const producer = queueOf(given, around).producer({ idempotent: given.idempotent as boolean });
    try {
      return await produce(producer, given);
    } finally {
      await producer.close();
    }
  },
  close: ({ producer }) => (producer as Producer).close(),
  hold: async ({ queue, msgIds }, { client, cleanups }) => {
    const end = new AbortController();
    cleanups.push(() => {
      end.abort();
      return Promise.resolve();
    });
    const ids = (msgIds as number[]).map(String);
    const replies = client.raw.transactions.openTransaction(holding(queue as string, ids), { signal: end.signal });
    const came = replies[Symbol.asyncIterator]();
    await came.next();
    await came.next();
  },
  restart_server: ({ kill }) => {
    endedServer = serverPid();
    process.kill(endedServer, kill ? "SIGKILL" : "SIGTERM");
  },
  wait_for_server: async (_, { client }) => {
    const end = Date.now() + 60_000;
    while (Date.now() < end) {
      await sleep(50);
      if (serverPid() === endedServer) continue;
      const answer = await client.getServerInfo({ timeoutMs: 1000 }).catch((error: unknown) => error as PgmqError);
      if (!(answer instanceof PgmqError)) return;
    }
    throw new Error("the server is not there again after a minute");
  },
  wait: ({ seconds }) => sleep((seconds as number) * 1000),
};

type Commands = typeof OpenTransactionRequestSchema;

/** The commands of a transaction that deletes messages and stays open: while it waits for a message, it is not idle. */
async function* holding(queue: string, msgIds: string[]): AsyncGenerator<MessageInitShape<Commands>> {
  yield { command: { case: "begin", value: {} } };
  yield { command: { case: "delete", value: { queue, msgIds } } };
  yield { command: { case: "readBatch", value: { queue, wait: { seconds: 40n } } } };
  await new Promise(() => undefined);
}

function serverPid(): number {
  return Number(readFileSync(process.env.PGMQ_GRPC_SERVER_PID_FILE ?? "", "utf8"));
}

/** What an archived message is to cases: the message, with the moment at which it was archived. */
export function archived(view: unknown): unknown {
  return isMap(view) && isMap(view.archived) ? { ...view.archived, archived_at: view.archived_at } : view;
}
