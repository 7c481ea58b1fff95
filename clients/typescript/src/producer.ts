/** Sends of many callers over one stream. */
import { create } from "@bufbuild/protobuf";
import { backoff, type CallOptions, cancelled } from "./calls.js";
import { errorFromCommand, PgmqError } from "./errors.js";
import type { OutgoingMessage as WireMessage } from "./gen/pgmq/v1/message_pb.js";
import { type ProduceRequest, ProduceRequestSchema, type ProduceResponse } from "./gen/pgmq/v1/queue_service_pb.js";
import type { JsonText } from "./json.js";
import { outgoing } from "./message.js";
import type { Queue } from "./queue.js";
import { keepOpen, type Life, Outbox } from "./stream.js";
import type { SendResult, SendSettings } from "./types.js";

export interface ProducerOptions {
  /** How many messages may be unanswered; further sends wait. As many as the server takes (10,000), and no more. */
  maxUnanswered?: number | undefined;
  /** Gives every message a deduplication id, so that it is sent again when a stream breaks. */
  idempotent?: boolean | undefined;
  /** How long a send may take, its waiting and its repeats included, in milliseconds. */
  timeoutMs?: number | undefined;
}

/** How often a message is sent again that the server has refused for the moment. */
const REPEATS = 3;
/** What the contract allows, until the stream itself says it. */
const LIMITS = { maxInFlight: 10_000, maxFrameMessages: 1000, maxFrameBytes: 1 << 20 };
const LOOK_MS = 250;
/** How long the server may take to end the stream after its last message. */
const FAREWELL_MS = 5000;

interface Pending {
  message: WireMessage;
  bytes: number;
  deadline: number;
  failures: number;
  /** Whether it has left at least once over a stream that has broken. */
  unknown: boolean;
  settled: boolean;
  resolve(result: SendResult): void;
  reject(error: PgmqError): void;
}

/** Concurrent sends to one queue that share a stream. Each gets its own id, or its own error. */
export class Producer<T = unknown> implements AsyncDisposable {
  readonly #queue: Queue<T>;
  readonly #options: ProducerOptions;
  readonly #end = new AbortController();
  /** What waits for a place, then the frames that are unanswered. */
  #waiting: Pending[] = [];
  readonly #frames = new Map<bigint, Pending[]>();
  #unanswered = 0;
  #sequence = 0n;
  #limits = LIMITS;
  /** The stream that was opened. Nothing is sent over it until the server has confirmed it, and it is the outbox. */
  #opened: Outbox<ProduceRequest> | undefined;
  #outbox: Outbox<ProduceRequest> | undefined;
  #running: Promise<void> | undefined;
  #flushing = false;
  #closing = false;
  #clock: NodeJS.Timeout | undefined;
  #idle: (() => void)[] = [];

  /** @internal */
  constructor(queue: Queue<T>, options: ProducerOptions) {
    this.#queue = queue;
    this.#options = options;
  }

  /** Sends one message, and resolves once it is stored. While too many are unanswered, it waits. */
  send(message: T | JsonText, options: SendSettings & CallOptions = {}): Promise<SendResult> {
    if (this.#closing)
      return Promise.reject(new PgmqError("CANCELLED", "the producer is closed", { outcomeUnknown: false }));
    if (options.signal?.aborted) return Promise.reject(cancelled(options.signal.reason, false));
    const idempotent = options.idempotent ?? this.#options.idempotent;
    const wire = outgoing({ ...options, idempotent, message }, this.#queue.json);
    const timeoutMs = options.timeoutMs ?? this.#options.timeoutMs;
    return new Promise((resolve, reject) => {
      const pending: Pending = {
        message: wire,
        bytes: Buffer.byteLength(wire.message) + Buffer.byteLength(wire.headers),
        deadline: this.#queue.client.calls.deadline({ timeoutMs }),
        failures: 0,
        unknown: false,
        settled: false,
        resolve,
        reject,
      };
      options.signal?.addEventListener("abort", () => this.#giveUp(pending, cancelled(options.signal?.reason, true)), {
        once: true,
      });
      this.#waiting.push(pending);
      this.#run();
      this.#flushSoon();
    });
  }

  /** Takes no more, waits for what is under way, and ends the stream. */
  async close(): Promise<void> {
    this.#closing = true;
    if (this.#busy) await new Promise<void>((resolve) => this.#idle.push(resolve));
    if (this.#outbox) this.#outbox.end();
    else this.#end.abort();
    const limit = setTimeout(() => this.#end.abort(), FAREWELL_MS);
    await this.#running;
    clearTimeout(limit);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  get #busy(): boolean {
    return this.#waiting.length > 0 || this.#unanswered > 0;
  }

  /** Starts a stream when there is none, and looks after deadlines meanwhile. */
  #run(): void {
    this.#clock ??= setInterval(() => this.#look(), LOOK_MS);
    if (this.#running) return;
    const { calls, raw } = this.#queue.client;
    const untrack = this.#queue.client.track(this);
    const life: Life<ProduceResponse> = {
      name: `producer of ${this.#queue.name}`,
      open: (signal) => {
        this.#opened = new Outbox<ProduceRequest>();
        return raw.queues.produce(this.#opened, { signal });
      },
      received: (reply) => this.#received(reply),
      ended: (error, planned) => this.#ended(error, planned),
      wanted: () => !this.#end.signal.aborted && (!this.#closing || this.#busy),
    };
    this.#running = keepOpen(life, this.#end.signal, calls.logger)
      .catch((error: unknown) => this.#failAll(error as PgmqError))
      .finally(() => {
        untrack();
        this.#running = undefined;
        if (this.#waiting.length > 0) this.#run();
      });
  }

  #received(reply: ProduceResponse): void {
    if (reply.started) {
      const { maxInFlight, maxFrameMessages, maxFrameBytes } = reply.started;
      this.#limits = { maxInFlight, maxFrameMessages, maxFrameBytes };
      this.#outbox = this.#opened;
      if (this.#closing && !this.#busy) this.#outbox?.end();
    }
    if (reply.closing) {
      // No new frames; what the server has read, it answers.
      this.#outbox?.end();
      this.#outbox = undefined;
    }
    const frame = this.#frames.get(reply.firstSequence);
    if (frame && reply.msgIds.length > 0) this.#answer(frame, reply);
    this.#flush();
  }

  #answer(frame: Pending[], reply: ProduceResponse): void {
    this.#frames.delete(reply.firstSequence);
    this.#unanswered -= frame.length;
    const known = new Set(reply.deduplicated);
    const failures = new Map(reply.failures.map(({ index, error }) => [index, error]));
    for (const [index, pending] of frame.entries()) {
      const failure = failures.get(index);
      if (failure) this.#refused(pending, errorFromCommand(failure));
      else this.#resolve(pending, { msgId: reply.msgIds[index] as string, deduplicated: known.has(index) });
    }
    this.#tellIdle();
  }

  /** What the server could not take for the moment is sent again, and everything else is the caller's. */
  #refused(pending: Pending, error: PgmqError): void {
    const pause = backoff(pending.failures, 2000, error.retryDelay);
    const again = error.code === "UNAVAILABLE" && pending.failures < REPEATS && Date.now() + pause < pending.deadline;
    if (!again) return this.#giveUp(pending, pending.unknown ? error.withOutcomeUnknown() : error);
    pending.failures++;
    pending.unknown ||= error.outcomeUnknown;
    this.#unanswered++;
    setTimeout(() => {
      this.#unanswered--;
      if (!pending.settled) this.#waiting.push(pending);
      this.#flush();
      this.#tellIdle();
    }, pause);
  }

  /** A stream is over: what was not answered is sent again where that is safe. */
  #ended(error: PgmqError, planned: boolean): void {
    this.#outbox = undefined;
    const unanswered = [...this.#frames.values()].flat();
    this.#frames.clear();
    this.#unanswered -= unanswered.length;
    const again = unanswered.filter((pending) => {
      // After a planned end, what has no answer was not read.
      if (planned || pending.message.deduplicationId !== "") return !pending.settled;
      this.#giveUp(
        pending,
        new PgmqError("UNAVAILABLE", `the stream has broken: ${error.message}`, {
          cause: error,
          outcomeUnknown: true,
        }),
      );
      return false;
    });
    if (!planned) for (const pending of again) pending.unknown = true;
    this.#waiting = [...again, ...this.#waiting];
    this.#tellIdle();
  }

  /** Lets the sends of this turn of the event loop travel together. */
  #flushSoon(): void {
    if (this.#flushing) return;
    this.#flushing = true;
    setImmediate(() => {
      this.#flushing = false;
      this.#flush();
    });
  }

  #flush(): void {
    const window = Math.min(this.#options.maxUnanswered ?? Infinity, this.#limits.maxInFlight);
    while (this.#outbox && this.#waiting.length > 0 && this.#unanswered < window) {
      const frame = this.#frame(window - this.#unanswered);
      if (frame.length === 0) continue;
      const firstSequence = this.#sequence;
      this.#sequence += BigInt(frame.length);
      this.#unanswered += frame.length;
      this.#frames.set(firstSequence, frame);
      const messages = frame.map((pending) => pending.message);
      this.#outbox.push(create(ProduceRequestSchema, { queue: this.#queue.name, firstSequence, messages }));
    }
  }

  /** The next messages that fit one frame. A single one may be larger than a frame. */
  #frame(places: number): Pending[] {
    const most = Math.min(places, this.#limits.maxFrameMessages);
    let bytes = 0;
    let count = 0;
    for (const pending of this.#waiting) {
      bytes += pending.bytes;
      if (count === most || (count > 0 && bytes > this.#limits.maxFrameBytes)) break;
      count++;
    }
    return this.#waiting.splice(0, count).filter((pending) => !pending.settled);
  }

  #look(): void {
    for (const pending of this.#waiting) this.#giveUpLate(pending, pending.unknown);
    for (const pending of [...this.#frames.values()].flat()) this.#giveUpLate(pending, true);
    this.#waiting = this.#waiting.filter((pending) => !pending.settled);
    this.#tellIdle();
  }

  #giveUpLate(pending: Pending, outcomeUnknown: boolean): void {
    if (pending.deadline > Date.now()) return;
    this.#giveUp(pending, new PgmqError("DEADLINE_EXCEEDED", "the message was not stored in time", { outcomeUnknown }));
  }

  #resolve(pending: Pending, result: SendResult): void {
    if (pending.settled) return;
    pending.settled = true;
    pending.resolve(result);
  }

  #giveUp(pending: Pending, error: PgmqError): void {
    if (pending.settled) return;
    pending.settled = true;
    pending.reject(error);
  }

  #failAll(error: PgmqError): void {
    for (const pending of this.#waiting.splice(0)) {
      this.#giveUp(pending, pending.unknown ? error.withOutcomeUnknown() : error);
    }
    this.#tellIdle();
  }

  #tellIdle(): void {
    if (this.#busy) return;
    clearInterval(this.#clock);
    this.#clock = undefined;
    for (const resolve of this.#idle.splice(0)) resolve();
  }
}
