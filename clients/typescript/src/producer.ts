/** Sends of many callers over one stream. */
import { create } from "@bufbuild/protobuf";
import { backoff, type CallOptions, checkTimeout } from "./calls.js";
import { errorFromCommand, PgmqError } from "./errors.js";
import type { OutgoingMessage as WireMessage } from "./gen/pgmq/v1/message_pb.js";
import { type ProduceRequest, ProduceRequestSchema, type ProduceResponse } from "./gen/pgmq/v1/queue_service_pb.js";
import type { JsonText } from "./json.js";
import { bytesOf, outgoing } from "./message.js";
import type { Queue } from "./queue.js";
import { Line } from "./stream.js";
import type { SendResult, SendSettings } from "./types.js";
import { Change, Waiter } from "./waiting.js";

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
/** The server takes requests of up to 8 MiB, and a larger one is the end of its stream. */
const MOST_BYTES = (8 << 20) - 4096;
/** What the contract allows, until the stream itself says it. */
const LIMITS = { maxInFlight: 10_000, maxFrameMessages: 1000, maxFrameBytes: 1 << 20 };

/** A message that is not stored yet, and the caller who waits for that. */
interface Pending {
  readonly message: WireMessage;
  readonly bytes: number;
  readonly caller: Waiter<SendResult>;
  failures: number;
  /** Whether an earlier try has left it open whether the message is stored. */
  unknown: boolean;
}

/** Concurrent sends to one queue that share a stream. Each gets its own id, or its own error. */
export class Producer<T = unknown> implements AsyncDisposable {
  readonly #queue: Queue<T>;
  readonly #options: ProducerOptions;
  readonly #line: Line<ProduceRequest, ProduceResponse>;
  /** What waits for a place, then the frames that are unanswered. */
  #waiting: Pending[] = [];
  readonly #frames = new Map<bigint, Pending[]>();
  #unanswered = 0;
  #callers = 0;
  #sequence = 0n;
  #limits = LIMITS;
  #flushing = false;
  #closing = false;
  readonly #change = new Change();

  /** @internal */
  constructor(queue: Queue<T>, options: ProducerOptions) {
    const { maxUnanswered = 1, timeoutMs = 0 } = options;
    if (!Number.isInteger(maxUnanswered) || maxUnanswered < 1) {
      throw new RangeError(`maxUnanswered is a number of messages, not ${maxUnanswered}`);
    }
    checkTimeout(timeoutMs);
    this.#queue = queue;
    this.#options = options;
    this.#line = new Line(queue.client, {
      name: `producer of ${queue.name}`,
      open: (outbox, signal) => queue.client.raw.queues.produce(outbox, { signal }),
      received: (reply) => this.#received(reply),
      ended: (error, planned) => this.#ended(error, planned),
      wanted: () => !this.#closing || this.#callers > 0,
    });
  }

  /** Sends one message, and resolves once it is stored. While too many are unanswered, it waits. */
  async send(message: T | JsonText, options: SendSettings & CallOptions = {}): Promise<SendResult> {
    this.#queue.client.calls.checkOpen();
    const idempotent = options.idempotent ?? this.#options.idempotent;
    const timeoutMs = options.timeoutMs ?? this.#options.timeoutMs;
    const wire = outgoing({ ...options, idempotent, message }, this.#queue.json);
    return this.enqueue(wire, { ...options, timeoutMs });
  }

  /** @internal */
  enqueue(message: WireMessage, options: CallOptions): Promise<SendResult> {
    if (this.#closing) throw new PgmqError("CANCELLED", "the producer is closed", { outcomeUnknown: false });
    const bytes = bytesOf(message);
    if (bytes > MOST_BYTES) {
      const facts = { reason: "MESSAGE_TOO_LARGE", outcomeUnknown: false } as const;
      throw new PgmqError("INVALID_ARGUMENT", "the message is larger than a request can be", facts);
    }
    const deadline = this.#queue.client.calls.deadline(options);
    this.#callers++;
    const caller = new Waiter<SendResult>(deadline, options, () => {
      this.#callers--;
      this.#change.tell();
    });
    this.#waiting.push({ message, bytes, caller, failures: 0, unknown: false });
    this.#run();
    this.#flushSoon();
    return caller.answer();
  }

  /** Takes no more, waits for what is under way, and ends the stream. */
  async close(): Promise<void> {
    this.#closing = true;
    await this.#change.until(() => this.#callers === 0);
    await this.#line.leave();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Keeps a stream open from the first message on. */
  #run(): void {
    if (this.#line.running) return;
    void this.#line
      .run(() => this.close())
      .catch((error: unknown) => {
        for (const pending of this.#waiting.splice(0)) this.#fail(pending, error as PgmqError);
      })
      .then(() => {
        if (this.#waiting.some(({ caller }) => !caller.over)) this.#run();
      });
  }

  #received(reply: ProduceResponse): void {
    if (reply.started) {
      const { maxInFlight, maxFrameMessages, maxFrameBytes } = reply.started;
      this.#limits = { maxInFlight, maxFrameMessages, maxFrameBytes };
      if (this.#closing && this.#callers === 0) this.#line.outbox?.end();
    }
    if (reply.closing) {
      // No new frames; what the server has read, it answers.
      this.#line.outbox?.end();
      this.#line.outbox = undefined;
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
      else pending.caller.resolve({ msgId: reply.msgIds[index] as string, deduplicated: known.has(index) });
    }
  }

  /** What the server could not take for the moment is sent again, and everything else is the caller's. */
  #refused(pending: Pending, error: PgmqError): void {
    const { caller } = pending;
    pending.unknown ||= error.outcomeUnknown;
    caller.left = pending.unknown;
    const pause = backoff(pending.failures, 2000, error.retryDelay);
    const inTime = pending.failures < REPEATS && Date.now() + pause < caller.deadline;
    if (error.code !== "UNAVAILABLE" || !inTime) return this.#fail(pending, error);
    pending.failures++;
    this.#unanswered++;
    setTimeout(() => {
      this.#unanswered--;
      this.#waiting.push(pending);
      this.#run();
      this.#flush();
    }, pause);
  }

  /** A stream is over: what was not answered is sent again where that is safe. */
  #ended(error: PgmqError, planned: boolean): void {
    const unanswered = [...this.#frames.values()].flat();
    this.#frames.clear();
    this.#unanswered -= unanswered.length;
    for (const pending of unanswered) {
      // After a planned end, what has no answer was not read.
      pending.unknown ||= !planned;
      pending.caller.left = pending.unknown;
      if (planned || pending.message.deduplicationId !== "") continue;
      const message = `the stream has broken: ${error.message}`;
      pending.caller.reject(new PgmqError("UNAVAILABLE", message, { cause: error, outcomeUnknown: true }));
    }
    this.#waiting = [...unanswered, ...this.#waiting].filter(({ caller }) => !caller.over);
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
    while (this.#line.outbox && this.#waiting.length > 0 && this.#unanswered < window) {
      const frame = this.#frame(window - this.#unanswered);
      if (frame.length === 0) continue;
      const firstSequence = this.#sequence;
      this.#sequence += BigInt(frame.length);
      this.#unanswered += frame.length;
      this.#frames.set(firstSequence, frame);
      for (const { caller } of frame) caller.left = true;
      const messages = frame.map((pending) => pending.message);
      this.#line.outbox.push(create(ProduceRequestSchema, { queue: this.#queue.name, firstSequence, messages }));
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
    return this.#waiting.splice(0, count).filter(({ caller }) => !caller.over);
  }

  #fail({ caller, unknown }: Pending, error: PgmqError): void {
    caller.reject(unknown ? error.withOutcomeUnknown() : error);
  }
}
