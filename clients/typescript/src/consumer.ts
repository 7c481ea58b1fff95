/** Messages as they come, over a stream that survives restarts. */
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { backoff, type CallOptions, checkTimeout, closed } from "./calls.js";
import { durationOf, milliseconds, toWire } from "./convert.js";
import { errorFromCommand, PgmqError } from "./errors.js";
import type { Message as WireMessage } from "./gen/pgmq/v1/message_pb.js";
import {
  type CommandResult,
  type ConsumeRequest,
  ConsumeRequestSchema,
  type ConsumeResponse,
  ConsumeStartSchema,
  ExtendSchema,
  SettleSchema,
} from "./gen/pgmq/v1/queue_service_pb.js";
import { Inbox } from "./inbox.js";
import { type JsonCodec, textOf } from "./json.js";
import { Message, type Settlement } from "./message.js";
import type { Queue } from "./queue.js";
import { itemResult, settle } from "./settle.js";
import { Line } from "./stream.js";
import type { ItemResult, Ordering } from "./types.js";
import { Change, Waiter } from "./waiting.js";

export interface ConsumeOptions {
  /** How many messages may be unsettled: 1 to 1,000. */
  maxInFlight?: number | undefined;
  /** How long a message is hidden from others, in milliseconds, unless it is extended. */
  visibilityTimeout?: number | undefined;
  ordering?: Ordering | undefined;
  /** Only messages whose body contains this. */
  conditional?: unknown;
  /** Whether messages in hand stay hidden for as long as this client lives. They do unless it is false. */
  autoExtend?: boolean | undefined;
  /** How long after its delivery a message is kept so at most, in milliseconds. */
  maxExtension?: number | undefined;
  /** The longest silence of the stream, in milliseconds. Twice that, and it is taken for dead. */
  heartbeatInterval?: number | undefined;
  /** Stops the consumer, as {@link Consumer.stop} does. */
  signal?: AbortSignal | undefined;
}

/** What becomes of a message that was not handed over. */
const GIVE_BACK: Settlement = { action: "GIVE_BACK" };
/** How many receipts a command takes. */
const MOST_RECEIPTS = 1000;
/** How often a message that could not be settled is let go. */
const ATTEMPTS = 3;
const PATIENCE_MS = 30_000;
/** How long a message is extended after a broken stream, where nothing else is said. */
const HOUR_MS = 3_600_000;

/** Messages that are settled alike, in one command. */
interface Batch {
  settlement: Settlement;
  receipts: string[];
  waiters: Pick<Waiter<ItemResult>, "resolve" | "reject">[];
  /** Whether an earlier try may have settled it, so that it is gone now. */
  repeated?: boolean;
  /** The stream over which it was tried last. */
  streamId?: string;
}

type Command = NonNullable<ConsumeRequest["command"]>;

/**
 * The messages of a queue: `for await (const message of queue.consume())`. Settle each; leaving the loop stops the
 * consumer, and gives back at once what has come and was not handed over. A stream that breaks is opened again, and
 * messages in hand stay valid: they are settled over the new stream, or by a unary call while there is none.
 */
export class Consumer<T = unknown> implements AsyncIterable<Message<T>>, AsyncDisposable {
  readonly #queue: Queue<T>;
  readonly #options: ConsumeOptions;
  readonly #inbox = new Inbox<Message<T>>();
  readonly #line: Line<ConsumeRequest, ConsumeResponse>;
  /** What has come and waits until fewer messages are in hand. */
  #arrived: Message<T>[] = [];
  /** Handed over, or about to be, and not settled: by receipt. */
  readonly #held = new Map<string, Message<T>>();
  /** Of earlier streams, which nobody extends but us: by receipt, until when. */
  readonly #carried = new Map<string, number>();
  #maxInFlight = 100;
  #visibilityTimeout = 30_000;
  #hasRetryBackoff = false;
  #begun = false;
  #clock: NodeJS.Timeout | undefined;
  #saidSomething = false;
  #requestId = 0n;
  #streamId = "";
  readonly #commands = new Map<bigint, Batch>();
  #batches = new Map<string, Batch>();
  #settling = 0;
  /** What could be settled by no way, and waits for the next stream. */
  #homeless: Batch[] = [];
  #stopped: Promise<void> | undefined;
  readonly #change = new Change();

  /** @internal */
  constructor(queue: Queue<T>, options: ConsumeOptions) {
    this.#queue = queue;
    this.#options = options;
    const start = startOf(queue.name, queue.json, options);
    this.#line = new Line(queue.client, {
      name: `consumer of ${queue.name}`,
      open: (outbox, signal) => {
        outbox.push(start);
        return queue.client.raw.queues.consume(outbox, { signal });
      },
      received: (reply, heartbeatMs) => this.#received(reply, heartbeatMs),
      ended: () => this.#ended(),
      wanted: () => !this.#stopped,
    });
    options.signal?.addEventListener("abort", () => void this.stop(), { once: true });
    if (options.signal?.aborted) void this.stop();
  }

  /** @internal Whether the queue's policy says how long a message is hidden that is released without a delay. */
  get hasRetryBackoff(): boolean {
    return this.#hasRetryBackoff;
  }

  /** @internal */
  get json(): JsonCodec {
    return this.#queue.json;
  }

  [Symbol.asyncIterator](): AsyncIterator<Message<T>, undefined> {
    this.#begin();
    return {
      next: () => this.#inbox.next(),
      return: async () => {
        await this.stop({ timeoutMs: 0 });
        return { done: true, value: undefined };
      },
    };
  }

  /**
   * Takes no more messages, gives back those that were not handed over, and resolves once those in hand are settled, at
   * most after `timeoutMs` (30,000). Whoever is inside of the loop leaves it by `break`, which waits for nothing.
   */
  stop({ timeoutMs = PATIENCE_MS }: { timeoutMs?: number } = {}): Promise<void> {
    checkTimeout(timeoutMs);
    this.#stopped ??= this.#stop(timeoutMs);
    return this.#stopped;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop({ timeoutMs: 0 });
  }

  /** @internal */
  async settle(message: Message, settlement: Settlement, options: CallOptions): Promise<ItemResult> {
    // What cannot be written fails here, and not in a command that others share.
    durationOf(settlement.delay ?? settlement.visibilityTimeout ?? 0);
    if (this.#queue.client.calls.ended) throw closed();
    const waiter = new Waiter<ItemResult>(this.#queue.client.calls.deadline(options), options);
    if (!waiter.over) this.#enqueue(message.receipt, settlement, waiter);
    waiter.left = true;
    const result = await waiter.answer();
    if (settlement.action !== "EXTEND") this.settled(message);
    return result;
  }

  /** @internal */
  settled(message: Message): void {
    this.#forget(message.receipt);
  }

  /**
   * @internal Has a message that could not be settled come back after its visibility timeout. Only a command ends its
   * extension by the server, and frees its place there.
   */
  async letGo(message: Message, failure: unknown): Promise<void> {
    let last = failure;
    for (let failures = 0; failures < ATTEMPTS; failures++) {
      await sleep(backoff(failures, 1000, last instanceof PgmqError ? last.retryDelay : 0));
      try {
        await message.release({ delay: this.#visibilityTimeout });
        return;
      } catch (error) {
        last = error;
        this.#log(`${message.msgId} is not let go: ${String(error)}`);
      }
    }
    // Whoever stops need not wait for it: the server keeps it no longer than the stream lasts.
    this.settled(message);
  }

  #begin(): void {
    if (this.#begun || this.#stopped) return;
    this.#begun = true;
    void this.#run()
      .then(
        () => this.#inbox.end(),
        (error: unknown) => this.#inbox.end(error as PgmqError),
      )
      // No stream comes any more.
      .then(() => this.#settleHomeless());
  }

  async #run(): Promise<void> {
    this.#queue.client.calls.checkOpen();
    await this.#line.run(() => this.stop());
  }

  #received(reply: ConsumeResponse, heartbeatMs: number | undefined): void {
    if (reply.started && heartbeatMs !== undefined) {
      this.#streamId = reply.started.streamId;
      this.#maxInFlight = reply.started.maxInFlight;
      this.#hasRetryBackoff = reply.started.hasRetryBackoff;
      if (reply.started.visibilityTimeout) this.#visibilityTimeout = milliseconds(reply.started.visibilityTimeout);
      this.#clock = setInterval(() => this.#tick(), Math.min(heartbeatMs, this.#visibilityTimeout / 2));
      this.#settleHomeless();
      this.#keepCarried();
      if (this.#stopped) this.#command({ case: "stop", value: { $typeName: "pgmq.v1.Stop" } });
    }
    for (const result of reply.commandResults) this.#answered(result);
    if (reply.messages.length > 0) this.#arrive(reply.messages);
  }

  #arrive(messages: readonly WireMessage[]): void {
    for (const message of messages) this.#arrived.push(new Message<T>(this.#queue.name, message, this));
    if (this.#stopped) this.#giveBack();
    else this.#handOver();
  }

  /** Hands over what has come. What is in hand of earlier streams, which the server does not count, takes places too. */
  #handOver(): void {
    while (this.#arrived.length > 0 && (this.#carried.size === 0 || this.#held.size < this.#maxInFlight)) {
      const message = this.#arrived.shift() as Message<T>;
      this.#held.set(message.receipt, message);
      this.#inbox.push(message);
    }
  }

  /** Gives back what was not handed over: it is visible at once, and the delivery does not count. */
  #giveBack(): void {
    for (const message of [...this.#inbox.drain(), ...this.#arrived.splice(0)]) {
      this.#forget(message.receipt);
      const failed = (error: PgmqError) => this.#log(`a message was not given back: ${error.message}`);
      this.#enqueue(message.receipt, GIVE_BACK, { resolve: () => undefined, reject: failed });
    }
  }

  #forget(receipt: string): void {
    this.#held.delete(receipt);
    this.#carried.delete(receipt);
    this.#handOver();
    this.#change.tell();
  }

  /** Shows the server that the client lives, and keeps what is in hand of earlier streams. */
  #tick(): void {
    this.#keepCarried();
    if (!this.#saidSomething) this.#command({ case: "heartbeat", value: { $typeName: "pgmq.v1.ClientHeartbeat" } });
    this.#saidSomething = false;
  }

  #keepCarried(): void {
    for (const [receipt, until] of this.#carried) if (until < Date.now()) this.#carried.delete(receipt);
    this.#handOver();
    if (this.#options.autoExtend === false) return;
    for (const receipt of this.#carried.keys()) {
      const kept = (result: ItemResult) => {
        if (result.outcome !== "DONE") this.#forget(receipt);
      };
      this.#enqueue(receipt, { action: "EXTEND" }, { resolve: kept, reject: (error) => this.#log(error.message) });
    }
  }

  /** Puts a receipt into the command that the receipts of this turn of the event loop share. */
  #enqueue(receipt: string, settlement: Settlement, waiter: Batch["waiters"][number]): void {
    if (this.#batches.size === 0) setImmediate(() => this.#flush());
    const key = JSON.stringify(settlement);
    let batch = this.#batches.get(key);
    if (!batch || batch.receipts.length === MOST_RECEIPTS) {
      if (batch) this.#send(batch);
      batch = { settlement, receipts: [], waiters: [] };
      this.#batches.set(key, batch);
    }
    batch.receipts.push(receipt);
    batch.waiters.push(waiter);
    this.#settling++;
  }

  #flush(): void {
    const batches = [...this.#batches.values()];
    this.#batches = new Map();
    for (const batch of batches) this.#send(batch);
  }

  #send(batch: Batch): void {
    if (!this.#line.outbox) return void this.#settleUnary(batch);
    batch.streamId = this.#streamId;
    const requestId = ++this.#requestId;
    this.#commands.set(requestId, batch);
    this.#command(commandOf(batch), requestId);
  }

  #command(command: Command, requestId = 0n): void {
    this.#saidSomething = true;
    this.#line.outbox?.push({ $typeName: "pgmq.v1.ConsumeRequest", requestId, command });
  }

  #answered({ requestId, results, error }: CommandResult): void {
    const batch = this.#commands.get(requestId);
    if (!batch) return;
    this.#commands.delete(requestId);
    if (!error) return this.#resolve(batch, results.map(itemResult));
    const failure = errorFromCommand(error);
    // The unary call waits, and tries again.
    if (failure.code === "UNAVAILABLE") void this.#settleUnary(batch, backoff(0, 1000, failure.retryDelay));
    else this.#reject(batch, failure);
  }

  async #settleUnary(batch: Batch, pause = 0): Promise<void> {
    if (pause > 0) await new Promise((resolve) => setTimeout(resolve, pause));
    const { settlement, receipts } = batch;
    const complete = { ...settlement, visibilityTimeout: settlement.visibilityTimeout ?? this.#visibilityTimeout };
    const { calls } = this.#queue.client;
    try {
      this.#resolve(batch, await settle(calls, this.#queue.name, { receipts, msgIds: [] }, complete, {}, true));
    } catch (error) {
      if (this.#waits(batch, error as PgmqError)) this.#wait(batch, error as PgmqError);
      else this.#reject(batch, error as PgmqError);
    }
  }

  /** Whether a stream may come that can settle what no server was there for. A receipt is good until another reads. */
  #waits({ settlement, streamId }: Batch, { code }: PgmqError): boolean {
    const another = this.#line.outbox === undefined || streamId !== this.#streamId;
    const away = code === "UNAVAILABLE" || code === "DEADLINE_EXCEEDED";
    return away && another && settlement.action !== "EXTEND" && this.#line.running && !this.#stopped;
  }

  #wait(batch: Batch, error: PgmqError): void {
    this.#log(`what is to be settled waits for the next stream: ${error.message}`);
    batch.repeated ||= error.outcomeUnknown;
    this.#homeless.push(batch);
    if (this.#line.outbox) this.#settleHomeless();
  }

  /** Settles what has waited, by the stream if there is one. */
  #settleHomeless(): void {
    for (const batch of this.#homeless.splice(0)) this.#send(batch);
  }

  #resolve(batch: Batch, results: ItemResult[]): void {
    this.#settling -= batch.waiters.length;
    const repeated = batch.repeated && batch.settlement.action !== "EXTEND";
    for (const [index, waiter] of batch.waiters.entries()) {
      const result = results[index] as ItemResult;
      // A message that is gone now is so most likely by the first attempt.
      waiter.resolve(repeated && result.outcome === "NOT_FOUND" ? { ...result, outcome: "DONE" } : result);
    }
    this.#change.tell();
  }

  #reject({ settlement, receipts, waiters }: Batch, error: PgmqError): void {
    if (error.ofOne && receipts.length > 1) {
      // Which one, it does not say: each is asked for alone, so that nobody has the error of another.
      for (const [index, receipt] of receipts.entries()) {
        const waiter = waiters[index] as Batch["waiters"][number];
        this.#send({ settlement, receipts: [receipt], waiters: [waiter], repeated: true });
      }
      return;
    }
    this.#settling -= waiters.length;
    for (const waiter of waiters) waiter.reject(error);
    this.#change.tell();
  }

  /** A stream is over. What is in hand stays valid, and what was to be settled over it is settled by unary calls. */
  #ended(): void {
    clearInterval(this.#clock);
    const { autoExtend = true, maxExtension = HOUR_MS } = this.#options;
    const until = Date.now() + (autoExtend ? maxExtension : this.#visibilityTimeout);
    for (const receipt of [...this.#held.keys(), ...this.#arrived.map((message) => message.receipt)]) {
      if (!this.#carried.has(receipt)) this.#carried.set(receipt, until);
    }
    const batches = [...this.#commands.values()];
    this.#commands.clear();
    for (const batch of batches) void this.#settleUnary(batch);
  }

  async #stop(timeoutMs: number): Promise<void> {
    // `stop` has to be known before anything is given back.
    await Promise.resolve();
    this.#inbox.end();
    this.#settleHomeless();
    this.#command({ case: "stop", value: { $typeName: "pgmq.v1.Stop" } });
    this.#giveBack();
    await this.#change.until(() => this.#held.size === 0, timeoutMs);
    await this.#change.until(() => this.#settling === 0, PATIENCE_MS);
    await this.#line.leave();
  }

  #log(message: string): void {
    this.#queue.client.calls.logger.info(`consumer of ${this.#queue.name}: ${message}`);
  }
}

function startOf(queue: string, json: JsonCodec, options: ConsumeOptions): ConsumeRequest {
  const { conditional, autoExtend = true } = options;
  const plain = { ...options, queue, conditional: textOf(conditional, json), autoExtend };
  const value = toWire(ConsumeStartSchema, plain);
  return create(ConsumeRequestSchema, { command: { case: "start", value } });
}

function commandOf({ settlement, receipts }: Batch): Command {
  const { action, delay, reason, visibilityTimeout } = settlement;
  if (action === "EXTEND") {
    return { case: "extend", value: toWire(ExtendSchema, { receipts, visibilityTimeout }) };
  }
  return { case: "settle", value: toWire(SettleSchema, { receipts, action, delay, reason }) };
}
