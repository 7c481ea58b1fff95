/** A queue: a name with methods. */
import type { DescMessage, DescMethodUnary } from "@bufbuild/protobuf";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import type { Client } from "./client.js";
import type { CallOptions, Reply } from "./calls.js";
import { Consumer, type ConsumeOptions } from "./consumer.js";
import { toWire } from "./convert.js";
import { AdminService } from "./gen/pgmq/v1/admin_service_pb.js";
import type { Message as WireMessage } from "./gen/pgmq/v1/message_pb.js";
import { QueueService } from "./gen/pgmq/v1/queue_service_pb.js";
import { type JsonCodec, type JsonText, textOf } from "./json.js";
import { Message, outgoing, type Settlement } from "./message.js";
import { Producer, type ProducerOptions } from "./producer.js";
import { messagesOf, named, settle, type Targets } from "./settle.js";
import type * as types from "./types.js";
import type { Watcher } from "./watcher.js";
import { Worker, type WorkOptions } from "./worker.js";

/** What a call that deletes or moves archived messages or dead letters has done. */
export interface Moved {
  count: number;
  /** Whether there may be more: call again. */
  more: boolean;
}

/** A queue by its name, of messages with bodies like `T`. It asks nobody until it is told to do something. */
export class Queue<T = unknown> {
  constructor(
    readonly client: Client,
    readonly name: string,
  ) {}

  /** @internal */
  get json(): JsonCodec {
    return this.client.calls.json;
  }

  /** Creates the queue, if it is not there. */
  async create(options: types.CreateQueueOptions = {}): Promise<{ queue: types.QueueInfo; created: boolean }> {
    return (await this.#call(QueueService.method.createQueue, options)) as never;
  }

  /** The queue as it is, with its policy. */
  async get(options: CallOptions = {}): Promise<types.QueueInfo> {
    return (await this.#call(QueueService.method.getQueue, options)).queue as types.QueueInfo;
  }

  /** Changes fields of the queue's policy: a value sets one, and null clears it. */
  async update(policy: types.PolicyChange, options: CallOptions = {}): Promise<types.QueueInfo> {
    const fields = Object.entries(policy).filter(([, value]) => value !== undefined);
    const paths = fields.map(([name]) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`));
    const reply = await this.#call(AdminService.method.updateQueue, { ...options, policy, updateMask: { paths } });
    return reply.queue as types.QueueInfo;
  }

  /** Removes the queue for good, with its messages and its archive. */
  async drop(options: CallOptions = {}): Promise<void> {
    await this.#call(QueueService.method.dropQueue, options);
  }

  /** Removes all messages for good, and tells how many. The archive stays. */
  async purge(options: CallOptions = {}): Promise<number> {
    return (await this.#call(QueueService.method.purgeQueue, options)).purgedCount;
  }

  async metrics(options: CallOptions & { includeArchive?: boolean | undefined } = {}): Promise<types.QueueMetrics> {
    return (await this.#call(QueueService.method.getQueueMetrics, options)).metrics;
  }

  async setLayout(layout: types.QueueLayout, options: CallOptions = {}): Promise<types.QueueInfo> {
    const slow = { timeoutMs: 3_600_000, ...options, layout };
    return (await this.#call(AdminService.method.setQueueLayout, slow)).queue as types.QueueInfo;
  }

  /** Sends one message, and resolves once it is stored. Sends that are under way at once share a stream. */
  async send(message: T | JsonText, options: types.SendSettings & CallOptions = {}): Promise<types.SendResult> {
    return this.client.sender.send(this.name, outgoing({ ...options, message }, this.json), options);
  }

  /** Sends up to 1,000 messages: all of them, in order, or none. */
  async sendBatch(
    messages: readonly types.OutgoingMessage<T>[],
    options: CallOptions = {},
  ): Promise<types.SendResult[]> {
    const batch = messages.map((message) => outgoing(message, this.json));
    const keyed = { keyed: batch.every((message) => message.deduplicationId !== "") };
    const request = { queue: this.name, messages: batch };
    const { results } = await this.client.calls.unary(QueueService.method.sendBatch, request, options, keyed);
    return results.map(({ msgId, deduplicated }) => ({ msgId, deduplicated }));
  }

  /** A stream of sends with settings of its own. Close it in the end. */
  producer(options: ProducerOptions = {}): Producer<T> {
    this.client.calls.checkOpen();
    return new Producer(this, options);
  }

  /** Reads up to `maxMessages` messages once, waiting for a first one if told so. */
  async read(options: types.ReadOptions = {}): Promise<Message<T>[]> {
    const { readBatch } = QueueService.method;
    const conditional = textOf(options.conditional, this.json);
    const request = toWire(readBatch.input, { ...options, queue: this.name, conditional });
    const { messages } = await this.client.calls.unary(readBatch, request, options, {
      extraMs: Math.max(0, options.wait ?? 0),
    });
    return this.#messages(messages);
  }

  /** Reads and deletes at once: at most once. */
  async pop(options: CallOptions & { maxMessages?: number | undefined } = {}): Promise<Message<T>[]> {
    const request = { queue: this.name, maxMessages: options.maxMessages ?? 0 };
    const { messages } = await this.client.calls.unary(QueueService.method.pop, request, options);
    return this.#messages(messages);
  }

  /** Messages as they come, over a stream that survives restarts: `for await (const message of queue.consume())`. */
  consume(options?: ConsumeOptions): Consumer<T>;
  /** Runs a handler for each message, and settles it: success deletes, an exception releases. */
  consume(handler: (message: Message<T>) => unknown, options?: WorkOptions): Worker<T>;
  consume(
    first?: ConsumeOptions | ((message: Message<T>) => unknown),
    second: WorkOptions = {},
  ): Consumer<T> | Worker<T> {
    this.client.calls.checkOpen();
    if (typeof first === "function") return new Worker(this, first, second);
    return new Consumer(this, first ?? {});
  }

  /** What happens to the queue, without reading from it. */
  watch(options: { signal?: AbortSignal | undefined } = {}): Watcher {
    return this.client.watch([this.name], options);
  }

  /** Removes messages for good. */
  delete(targets: Targets<T>, options: CallOptions = {}): Promise<types.ItemResult[]> {
    return this.#settle(targets, { action: "DELETE" }, options);
  }

  /** Moves messages to the archive. */
  archive(targets: Targets<T>, options: CallOptions = {}): Promise<types.ItemResult[]> {
    return this.#settle(targets, { action: "ARCHIVE" }, options);
  }

  /** Gives messages back, after a delay in milliseconds; without one, as the queue's backoff says. */
  release(
    targets: Targets<T>,
    options: CallOptions & { delay?: number | undefined } = {},
  ): Promise<types.ItemResult[]> {
    return this.#settle(targets, { action: "RELEASE", delay: options.delay }, options);
  }

  /** Moves messages to the queue's dead-letter queue. */
  deadLetter(
    targets: Targets<T>,
    options: CallOptions & { reason?: string | undefined } = {},
  ): Promise<types.ItemResult[]> {
    return this.#settle(targets, { action: "DEAD_LETTER", reason: options.reason }, options);
  }

  /** Sets when messages become visible: in so many milliseconds, or at a moment. */
  setVisibilityTimeout(
    targets: Targets<T>,
    visibility: number | Date,
    options: CallOptions = {},
  ): Promise<types.ItemResult[]> {
    const visible = visibility instanceof Date ? { visibleAt: visibility } : { visibilityTimeout: visibility };
    return settle(this.client.calls, this.name, named(targets), { action: "EXTEND", ...visible }, options);
  }

  /** The messages that are in the queue, by their ids. It reads none: they have no receipts. */
  async *listMessages(
    options: types.PageOptions & { state?: types.MessageState; msgIds?: readonly types.MessageId[] } = {},
  ): AsyncGenerator<Message<T>> {
    const list = this.client.calls.pages(AdminService.method.listMessages, { ...options, queue: this.name });
    for await (const page of list) yield* this.#messages(page.messages);
  }

  /** The messages that are in the archive, by their ids. */
  async *listArchivedMessages(
    options: types.PageOptions & types.ArchiveFilter = {},
  ): AsyncGenerator<{ message: Message<T>; archivedAt: Date }> {
    const request = { ...options, queue: this.name, filter: options };
    for await (const page of this.client.calls.pages(AdminService.method.listArchivedMessages, request)) {
      for (const { message, archivedAt } of page.messages) {
        if (!message || !archivedAt) continue;
        yield { message: new Message(this.name, message, this), archivedAt: timestampDate(archivedAt) };
      }
    }
  }

  /** Deletes archived messages for good: those of the filter, and without any condition the whole archive. */
  async deleteArchivedMessages(
    options: types.ArchiveFilter & CallOptions & { maxMessages?: number | undefined } = {},
  ): Promise<Moved> {
    const reply = await this.#call(AdminService.method.deleteArchivedMessages, { ...options, filter: options });
    return { count: reply.deletedCount, more: reply.more };
  }

  /** Moves archived messages back into the queue, or into another one: those of the filter, and without one all. */
  async replay(
    options: types.ArchiveFilter &
      CallOptions & { targetQueue?: string | undefined; maxMessages?: number | undefined } = {},
  ): Promise<Moved> {
    const reply = await this.#call(AdminService.method.replayArchivedMessages, { ...options, filter: options });
    return { count: reply.replayedCount, more: reply.more };
  }

  /** Moves the messages of this dead-letter queue back to where they came from, or into another queue. */
  async redrive(
    options: CallOptions & {
      msgIds?: readonly types.MessageId[] | undefined;
      targetQueue?: string | undefined;
      maxMessages?: number | undefined;
    } = {},
  ): Promise<Moved> {
    const request = { ...options, deadLetterQueue: this.name };
    const reply = await this.#call(AdminService.method.redriveMessages, request);
    return { count: reply.movedCount, more: reply.more };
  }

  /** Makes the queue receive what is sent to topics that match. Tells whether it did not before. */
  async bindTopic(pattern: string, options: CallOptions = {}): Promise<boolean> {
    return this.client.bindTopic(pattern, this.name, options);
  }

  /** Tells whether there was such a binding. */
  async unbindTopic(pattern: string, options: CallOptions = {}): Promise<boolean> {
    return this.client.unbindTopic(pattern, this.name, options);
  }

  /** @internal */
  async settle(message: Message, settlement: Settlement, options: CallOptions): Promise<types.ItemResult> {
    const span = message.lastReadAt ? message.vt.getTime() - message.lastReadAt.getTime() : 30_000;
    const complete = { ...settlement, visibilityTimeout: settlement.visibilityTimeout ?? span };
    const [result] = await settle(this.client.calls, this.name, named(message), complete, options);
    return result as types.ItemResult;
  }

  async #settle(targets: Targets<T>, settlement: Settlement, options: CallOptions): Promise<types.ItemResult[]> {
    const results = await settle(this.client.calls, this.name, named(targets), settlement, options);
    for (const message of messagesOf(targets) ?? []) message.settledElsewhere();
    return results;
  }

  #messages(messages: readonly WireMessage[]): Message<T>[] {
    return messages.map((message) => new Message<T>(this.name, message, this));
  }

  #call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: object,
  ): Promise<Reply<O>> {
    return this.client.calls.plain(method, { ...request, queue: this.name }, request);
  }
}
