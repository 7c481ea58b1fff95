/** Messages as they are read, and as they go out. */
import { randomUUID } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { timestampDate, timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { CallOptions } from "./calls.js";
import { durationOf } from "./convert.js";
import * as wire from "./gen/pgmq/v1/message_pb.js";
import { type JsonCodec, textOf } from "./json.js";
import type { ItemResult, Outcome, OutgoingMessage, SettleAction } from "./types.js";

/** What becomes of a message, with what belongs to it. */
export interface Settlement {
  action: SettleAction | "EXTEND";
  delay?: number | undefined;
  reason?: string | undefined;
  visibilityTimeout?: number | undefined;
}

/** Who settles a message: the stream that it came over, or else a unary call. */
export interface Settler {
  readonly json: JsonCodec;
  settle(message: Message, settlement: Settlement, options: CallOptions): Promise<ItemResult>;
  /** The message was settled by another way. */
  settled?(message: Message): void;
}

/** A message of a queue, as it was when it was read. Whoever holds it settles it: `delete`, `archive` or `release`. */
export class Message<T = unknown> {
  /** The id, unique in its queue: digits, because it may be beyond 2^53. */
  readonly msgId: string;
  /** How often the message was read, this time included. */
  readonly readCt: number;
  readonly enqueuedAt: Date;
  readonly lastReadAt: Date | undefined;
  /** When the message becomes visible, as it was known when it was read. */
  readonly vt: Date;
  /** The body's text, as the server gave it. */
  readonly messageText: string;
  /** The headers' text, "" without any. */
  readonly headersText: string;
  /** Names this delivery. "" where the message was not read, but popped or listed. */
  readonly receipt: string;
  readonly #settler: Settler;
  #settled = false;
  #body: { value: T } | undefined;
  #headers: { value: Record<string, unknown> | undefined } | undefined;

  /** @internal */
  constructor(
    readonly queue: string,
    from: wire.Message,
    settler: Settler,
  ) {
    this.msgId = from.msgId;
    this.readCt = from.readCt;
    this.enqueuedAt = from.enqueuedAt ? timestampDate(from.enqueuedAt) : new Date(0);
    this.lastReadAt = from.lastReadAt && timestampDate(from.lastReadAt);
    this.vt = from.vt ? timestampDate(from.vt) : new Date(0);
    this.messageText = from.message;
    this.headersText = from.headers;
    this.receipt = from.receipt;
    this.#settler = settler;
  }

  /** The body's value. Undefined where plain SQL has stored none. It is parsed when it is asked for. */
  get message(): T {
    this.#body ??= {
      value: (this.messageText === "" ? undefined : this.#settler.json.parse(this.messageText)) as T,
    };
    return this.#body.value;
  }

  get headers(): Record<string, unknown> | undefined {
    this.#headers ??= {
      value:
        this.headersText === "" ? undefined : (this.#settler.json.parse(this.headersText) as Record<string, unknown>),
    };
    return this.#headers.value;
  }

  /** Removes the message for good. */
  delete(options: CallOptions = {}): Promise<Outcome> {
    return this.#settle({ action: "DELETE" }, options);
  }

  /** Moves the message to the queue's archive. */
  archive(options: CallOptions = {}): Promise<Outcome> {
    return this.#settle({ action: "ARCHIVE" }, options);
  }

  /** Gives the message back, after a delay in milliseconds; without one, as the queue's backoff says. */
  release(options: CallOptions & { delay?: number | undefined } = {}): Promise<Outcome> {
    return this.#settle({ action: "RELEASE", delay: options.delay }, options);
  }

  /** Moves the message to the queue's dead-letter queue. */
  deadLetter(options: CallOptions & { reason?: string | undefined } = {}): Promise<Outcome> {
    return this.#settle({ action: "DEAD_LETTER", reason: String(options.reason ?? "") }, options);
  }

  /** Keeps the message for so many milliseconds from now; without a number, for the visibility timeout once more. */
  extend(visibilityTimeout?: number, options: CallOptions = {}): Promise<Outcome> {
    return this.#settle({ action: "EXTEND", visibilityTimeout }, options);
  }

  /** @internal Whether somebody of this program has settled the message. */
  get isSettled(): boolean {
    return this.#settled;
  }

  /** @internal It was settled by other means than its own methods. */
  settledElsewhere(): void {
    this.#settled = true;
    this.#settler.settled?.(this);
  }

  async #settle(settlement: Settlement, options: CallOptions): Promise<Outcome> {
    const { outcome } = await this.#settler.settle(this, settlement, options);
    if (settlement.action !== "EXTEND") this.#settled = true;
    return outcome;
  }
}

/** A message that is to be sent, in the contract's form. */
export function outgoing(message: OutgoingMessage, json: JsonCodec): wire.OutgoingMessage {
  const result = create(wire.OutgoingMessageSchema);
  result.message = textOf(message.message, json);
  if (message.headers !== undefined) result.headers = textOf(message.headers, json);
  if (message.delay !== undefined && message.visibleAt !== undefined) {
    throw new TypeError("delay and visibleAt exclude each other");
  }
  if (message.delay !== undefined) result.schedule = { case: "delay", value: durationOf(message.delay) };
  if (message.visibleAt !== undefined) {
    result.schedule = { case: "visibleAt", value: timestampFromDate(message.visibleAt) };
  }
  // What cannot be written to the wire must not come to a stream that others share.
  if (message.group !== undefined) result.group = String(message.group);
  result.deduplicationId = String(message.deduplicationId ?? (message.idempotent ? randomUUID() : ""));
  return result;
}

/** About how much of a frame a message takes. */
export function bytesOf({ message, headers, group, deduplicationId }: wire.OutgoingMessage): number {
  return (
    Buffer.byteLength(message) +
    Buffer.byteLength(headers) +
    Buffer.byteLength(group) +
    Buffer.byteLength(deduplicationId)
  );
}
