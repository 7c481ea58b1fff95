/** The client: one connection, and everything that is said over it. */
import { randomUUID } from "node:crypto";
import { debuglog } from "node:util";
import type { DescMessage, DescMethodUnary } from "@bufbuild/protobuf";
import { type Client as Stub, createClient, type Interceptor } from "@connectrpc/connect";
import { type CallOptions, Calls, type Logger, type Reply } from "./calls.js";
import { fromWire } from "./convert.js";
import { AdminService } from "./gen/pgmq/v1/admin_service_pb.js";
import { QueueService } from "./gen/pgmq/v1/queue_service_pb.js";
import { TopicService } from "./gen/pgmq/v1/topic_service_pb.js";
import { TransactionService } from "./gen/pgmq/v1/transaction_service_pb.js";
import { type JsonCodec, losslessJson } from "./json.js";
import { outgoing } from "./message.js";
import { Queue } from "./queue.js";
import { Sender } from "./sender.js";
import { messagesIn, type Operation, type OperationResult, operationToWire, resultFromWire } from "./transact.js";
import { type MetadataSource, open, type Sessions, type TlsOptions } from "./transport.js";
import type * as types from "./types.js";
import { Watcher } from "./watcher.js";

export interface ConnectOptions {
  /** Plain text without it. True takes the system's authorities. */
  tls?: boolean | TlsOptions | undefined;
  /** Metadata of every call, such as credentials: an object, or a function that is asked each time. */
  metadata?: MetadataSource | undefined;
  /** How the client calls itself in the server's log and in `listClients`. */
  clientName?: string | undefined;
  /** How long a unary call may take, in milliseconds, unless it says so itself; 0 means no limit. 30,000 without it. */
  timeoutMs?: number | undefined;
  /** The JSON library. {@link losslessJson} without it. */
  json?: JsonCodec | undefined;
  /** Interceptors of Connect, such as those that trace. */
  interceptors?: readonly Interceptor[] | undefined;
  /** Where the client tells what it does. Without one, that is `NODE_DEBUG=pgmq`. */
  logger?: Logger | undefined;
}

/** The generated stubs, with everything that has no word of its own here. */
export interface RawStubs {
  queues: Stub<typeof QueueService>;
  topics: Stub<typeof TopicService>;
  transactions: Stub<typeof TransactionService>;
  admin: Stub<typeof AdminService>;
}

/**
 * A client of the server at `target`: `host:port`, `dns:///name:port` or `unix:/path`; without one, of the variable
 * `PGMQ_GRPC_TARGET`, or else at `127.0.0.1:50051`. Nothing is connected before the first call.
 */
export function connect(target?: string, options: ConnectOptions = {}): Client {
  return new Client(target ?? (process.env.PGMQ_GRPC_TARGET || "127.0.0.1:50051"), options);
}

export class Client implements AsyncDisposable {
  /** @internal */
  readonly calls: Calls;
  /** @internal */
  readonly sender = new Sender(this);
  readonly raw: RawStubs;
  readonly #sessions: Sessions;
  readonly #open = new Set<() => Promise<void>>();
  #closed: Promise<void> | undefined;

  /** @internal */
  constructor(
    readonly target: string,
    options: ConnectOptions,
  ) {
    const { transport, sessions } = open(target, options, () => this.calls.ended);
    const debug = debuglog("pgmq");
    const logger = options.logger ?? { debug, info: debug, warn: debug };
    this.calls = new Calls(transport, options.json ?? losslessJson, logger, options.timeoutMs ?? 30_000);
    this.#sessions = sessions;
    this.raw = {
      queues: createClient(QueueService, transport),
      topics: createClient(TopicService, transport),
      transactions: createClient(TransactionService, transport),
      admin: createClient(AdminService, transport),
    };
  }

  /**
   * Stops consumers, workers and watches as their own `stop` does, which waits for handlers that run, waits for sends that
   * are under way, and ends the connection. Whatever is asked of the client from now on is refused, with CANCELLED. A
   * handler does not wait for it, because it would wait for itself.
   */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    this.calls.close();
    await Promise.allSettled([this.sender.close(), ...[...this.#open].map((stop) => stop())]);
    this.calls.end();
    this.#sessions.abort();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** @internal How something is stopped when the client is closed; the answer takes that back. */
  track(stop: () => Promise<void>): () => void {
    this.#open.add(stop);
    return () => this.#open.delete(stop);
  }

  /** A queue by its name, whose bodies are like `T`. It need not exist. */
  queue<T = unknown>(name: string): Queue<T> {
    return new Queue<T>(this, name);
  }

  createQueue(
    queue: string,
    options?: types.CreateQueueOptions,
  ): Promise<{ queue: types.QueueInfo; created: boolean }> {
    return this.queue(queue).create(options);
  }

  getQueue(queue: string, options?: CallOptions): Promise<types.QueueInfo> {
    return this.queue(queue).get(options);
  }

  updateQueue(queue: string, policy: types.PolicyChange, options?: CallOptions): Promise<types.QueueInfo> {
    return this.queue(queue).update(policy, options);
  }

  dropQueue(queue: string, options?: CallOptions): Promise<void> {
    return this.queue(queue).drop(options);
  }

  purgeQueue(queue: string, options?: CallOptions): Promise<number> {
    return this.queue(queue).purge(options);
  }

  setQueueLayout(queue: string, layout: types.QueueLayout, options?: CallOptions): Promise<types.QueueInfo> {
    return this.queue(queue).setLayout(layout, options);
  }

  getQueueMetrics(
    queue: string,
    options?: CallOptions & { includeArchive?: boolean | undefined },
  ): Promise<types.QueueMetrics> {
    return this.queue(queue).metrics(options);
  }

  /** Queues by name: all, those of a prefix, or those that use a dead-letter queue. */
  listQueues(
    options: types.PageOptions & { prefix?: string | undefined; deadLetterQueue?: string | undefined } = {},
  ): AsyncGenerator<types.QueueInfo> {
    return this.#list(QueueService.method.listQueues, "queues", options);
  }

  listQueueMetrics(
    options: types.PageOptions & { prefix?: string | undefined; includeArchive?: boolean | undefined } = {},
  ): AsyncGenerator<types.QueueMetrics> {
    return this.#list(QueueService.method.listQueueMetrics, "metrics", options);
  }

  /** Does several operations in one transaction of the database: all of them or none. */
  async transact<const Operations extends readonly Operation[]>(
    operations: Operations,
    options: CallOptions & { deduplicationId?: string | undefined; idempotent?: boolean | undefined } = {},
  ): Promise<{
    results: { -readonly [I in keyof Operations]: OperationResult<Operations[I]> };
    deduplicated: boolean;
  }> {
    const deduplicationId = options.deduplicationId ?? (options.idempotent ? randomUUID() : "");
    const request = { deduplicationId, operations: operations.map((one) => operationToWire(one, this.calls.json)) };
    const keyed = { keyed: deduplicationId !== "" };
    const reply = await this.calls.unary(QueueService.method.transact, request, options, keyed);
    for (const message of operations.flatMap(messagesIn)) message.settledElsewhere();
    return { results: reply.results.map(resultFromWire) as never, deduplicated: reply.deduplicated };
  }

  /** What happens to queues, without reading from them. */
  watch(queues: readonly string[], options: { signal?: AbortSignal | undefined } = {}): Watcher {
    this.calls.checkOpen();
    return new Watcher(this, queues, options.signal);
  }

  /** Sends a copy of a message to every queue that is bound to a pattern matching the routing key. */
  async sendTopic(
    routingKey: string,
    message: unknown,
    options: types.SendSettings & CallOptions & { requireMatch?: boolean | undefined } = {},
  ): Promise<types.TopicResult> {
    const { $typeName: _, ...body } = outgoing({ ...options, message }, this.calls.json);
    const request = { ...body, routingKey, requireMatch: options.requireMatch ?? false };
    const keyed = { keyed: body.deduplicationId !== "" };
    const { sendTopic } = TopicService.method;
    return fromWire(sendTopic.output, await this.calls.unary(sendTopic, request, options, keyed));
  }

  /** Sends copies of up to 1,000 messages with one routing key: all of them or none. */
  async sendTopicBatch(
    routingKey: string,
    messages: readonly types.OutgoingMessage[],
    options: CallOptions & { requireMatch?: boolean | undefined } = {},
  ): Promise<types.TopicCopy[]> {
    const batch = messages.map((message) => outgoing(message, this.calls.json));
    const request = { routingKey, messages: batch, requireMatch: options.requireMatch ?? false };
    const keyed = { keyed: batch.every((message) => message.deduplicationId !== "") };
    const { sendTopicBatch } = TopicService.method;
    const reply = await this.calls.unary(sendTopicBatch, request, options, keyed);
    return fromWire(sendTopicBatch.output, reply).copies;
  }

  /** Makes a queue receive what is sent to topics that match. Tells whether it did not before. */
  async bindTopic(pattern: string, queue: string, options: CallOptions = {}): Promise<boolean> {
    return (await this.#call(TopicService.method.bindTopic, { pattern, queue }, options)).created;
  }

  /** Tells whether there was such a binding. */
  async unbindTopic(pattern: string, queue: string, options: CallOptions = {}): Promise<boolean> {
    return (await this.#call(TopicService.method.unbindTopic, { pattern, queue }, options)).removed;
  }

  listTopicBindings(
    options: types.PageOptions & { queue?: string | undefined } = {},
  ): AsyncGenerator<types.TopicBinding> {
    return this.#list(TopicService.method.listTopicBindings, "bindings", options);
  }

  /** Which bindings match a routing key. Sends nothing. */
  async testRouting(routingKey: string, options: CallOptions = {}): Promise<types.TopicBinding[]> {
    return (await this.#call(TopicService.method.testRouting, { routingKey }, options)).matches;
  }

  /** Throws when a name of a queue, a routing key or a pattern is not well-formed. */
  async validateName(
    name: { queue: string } | { routingKey: string } | { pattern: string },
    options: CallOptions = {},
  ): Promise<void> {
    await this.#call(QueueService.method.validateName, name, options);
  }

  getServerInfo(options: CallOptions = {}): Promise<types.ServerInfo> {
    return this.#call(QueueService.method.getServerInfo, {}, options);
  }

  /** Creates the index of grouped reads: for one queue, or for all. */
  async createFifoIndex(
    target: { queue: string } | { allQueues: true },
    options: CallOptions = { timeoutMs: 3_600_000 },
  ): Promise<void> {
    await this.#call(AdminService.method.createFifoIndex, target, options);
  }

  async convertArchivePartitioned(
    queue: string,
    options: CallOptions & { partitioning?: types.Partitioning; leadingPartition?: number } = {},
  ): Promise<void> {
    const slow = { timeoutMs: 3_600_000, ...options };
    await this.#call(AdminService.method.convertArchivePartitioned, { ...options, queue }, slow);
  }

  /** Makes Postgres notify listeners of plain SQL, with at least `throttleInterval` milliseconds in between. */
  async enableNotifications(
    queue: string,
    options: CallOptions & { throttleInterval?: number | undefined } = {},
  ): Promise<types.NotificationSettings> {
    return (await this.#call(AdminService.method.enableNotifications, { ...options, queue }, options)).settings;
  }

  async updateNotifications(
    queue: string,
    options: CallOptions & { throttleInterval?: number | undefined } = {},
  ): Promise<types.NotificationSettings> {
    return (await this.#call(AdminService.method.updateNotifications, { ...options, queue }, options)).settings;
  }

  async disableNotifications(queue: string, options: CallOptions = {}): Promise<void> {
    await this.#call(AdminService.method.disableNotifications, { queue }, options);
  }

  listNotifications(
    options: types.PageOptions & { prefix?: string | undefined } = {},
  ): AsyncGenerator<types.NotificationSettings> {
    return this.#list(AdminService.method.listNotifications, "notifications", options);
  }

  /** Who has sent or consumed within the last minute, on all servers. */
  listClients(
    options: types.PageOptions & { queue?: string | undefined; prefix?: string | undefined } = {},
  ): AsyncGenerator<types.ClientInfo> {
    return this.#list(AdminService.method.listClients, "clients", options);
  }

  /** Installs pgmq in the database, or upgrades it. */
  installPgmq(options: CallOptions = {}): Promise<{ previousVersion: string; pgmqVersion: string }> {
    return this.#call(AdminService.method.installPgmq, {}, options);
  }

  #call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: object,
    options: CallOptions,
  ): Promise<Reply<O>> {
    return this.calls.plain(method, request, options);
  }

  async *#list<T>(method: DescMethodUnary, items: string, options: types.PageOptions): AsyncGenerator<T> {
    for await (const page of this.calls.pages(method, { ...options })) {
      yield* (fromWire(method.output, page) as unknown as Record<string, T[]>)[items] as T[];
    }
  }
}
