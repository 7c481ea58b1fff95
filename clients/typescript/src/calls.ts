/** Unary calls: deadlines, and repeats where they are safe. */
import { setTimeout as sleep } from "node:timers/promises";
import type { DescMessage, DescMethodUnary, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import type { Transport } from "@connectrpc/connect";
import { fromWire, toWire } from "./convert.js";
import { errorFrom, PgmqError } from "./errors.js";
import type { JsonCodec } from "./json.js";
import type { Plain } from "./types.js";

/** What can be said of every call. */
export interface CallOptions {
  /** Gives the call up. The error is CANCELLED, and the outcome is unknown. */
  signal?: AbortSignal | undefined;
  /**
   * How long the call may take with its repeats, in milliseconds; 0 means as long as it takes. 30,000 unless the client was
   * told otherwise.
   */
  timeoutMs?: number | undefined;
}

/** Where the client tells what it does: `console`, pino and winston are such. */
export interface Logger {
  debug(message: string): void;
  info(message: string): void;
  warn(message: string): void;
}

/** How often a failed call is repeated at most. */
const REPEATS = 3;

/** What the contract's service config lets a client repeat on UNAVAILABLE, whoever says so. */
export const REPEATABLE: ReadonlySet<string> = new Set(
  `CreateQueue GetQueue ListQueues GetQueueMetrics ListQueueMetrics Delete Archive Release DeadLetter ValidateName
  GetServerInfo BindTopic UnbindTopic ListTopicBindings TestRouting UpdateQueue ListMessages ListArchivedMessages
  ListNotifications ListClients`.split(/\s+/),
);

/** The pause before the next try: growing, jittered, and never shorter than what the server asks for. */
export function backoff(failures: number, maximum: number, asked = 0): number {
  const grown = Math.min(maximum, 100 * 2 ** failures);
  return Math.max(grown * (0.5 + Math.random() / 2), asked);
}

/** How a call is made. */
interface Manner {
  /** Whether its messages have deduplication ids, so that it may be repeated. */
  keyed?: boolean;
  /** What is added to its time. */
  extraMs?: number;
  /** Whether it settles what was in hand when the client was closed, so that it may still go. */
  inHand?: boolean;
}

/** What the server has answered, which sets every field. */
export type Reply<O extends DescMessage> = Required<Plain<MessageShape<O>>>;

/** The most milliseconds that the header of gRPC can say: more than a day. What takes longer has no limit. */
const MOST_DIGITS_MS = 99_999_999;

/** Fails where something is no time to wait. */
export function checkTimeout(milliseconds: number, name = "timeoutMs"): void {
  if (!(milliseconds >= 0)) throw new RangeError(`${name} is a number of milliseconds, not ${milliseconds}`);
}

export class Calls {
  /** Whether only what is under way goes on. */
  #closing = false;
  readonly #ended = new AbortController();

  constructor(
    readonly transport: Transport,
    readonly json: JsonCodec,
    readonly logger: Logger,
    private readonly timeoutMs: number,
  ) {
    checkTimeout(timeoutMs);
  }

  /** Takes no more calls but those that settle what is in hand. */
  close(): void {
    this.#closing = true;
  }

  /** Takes no calls at all, and repeats none. */
  end(): void {
    this.#ended.abort();
  }

  /** Whether nothing may be sent any more. */
  get ended(): boolean {
    return this.#ended.signal.aborted;
  }

  checkOpen(): void {
    if (this.#closing) throw closed();
  }

  /** The deadline of a call, by the clock of `Date.now`. */
  deadline({ timeoutMs = this.timeoutMs }: CallOptions): number {
    checkTimeout(timeoutMs);
    return timeoutMs === 0 ? Infinity : Date.now() + timeoutMs;
  }

  /** Makes a call with plain values, as {@link toWire} and {@link fromWire} know them. */
  async plain<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: object,
    options: CallOptions,
    manner: Manner = {},
  ): Promise<Reply<O>> {
    const reply = await this.unary(method, toWire(method.input, request), options, manner);
    return fromWire(method.output, reply) as unknown as Reply<O>;
  }

  /** Makes a call. */
  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions,
    { keyed = false, extraMs = 0, inHand = false }: Manner = {},
  ): Promise<MessageShape<O>> {
    if (inHand ? this.ended : this.#closing) throw closed();
    const deadline = this.deadline(options) + extraMs;
    if (options.signal?.aborted) throw cancelled(options.signal.reason, false);
    let unknown = false;
    for (let failures = 0; ; failures++) {
      try {
        const left = Math.max(1, Math.ceil(deadline - Date.now()));
        const limit = left > MOST_DIGITS_MS ? undefined : left;
        const reply = await this.transport.unary(method, options.signal, limit, undefined, request);
        return reply.message;
      } catch (thrown) {
        const error = aborted(options.signal) ?? errorFrom(thrown);
        unknown ||= error.outcomeUnknown;
        if (this.ended) throw closed(unknown);
        const safe = error.reason !== undefined || !error.outcomeUnknown || keyed || REPEATABLE.has(method.name);
        const pause = backoff(failures, 2000, error.retryDelay);
        const inTime = failures < REPEATS && Date.now() + pause < deadline;
        if (error.code !== "UNAVAILABLE" || !safe || !inTime) throw unknown ? error.withOutcomeUnknown() : error;
        this.logger.debug(`${method.name} failed, is repeated in ${Math.round(pause)} ms: ${error.message}`);
        await this.#pause(pause, options.signal, unknown);
      }
    }
  }

  async #pause(pause: number, signal: AbortSignal | undefined, unknown: boolean): Promise<void> {
    const end = this.#ended.signal;
    await sleep(pause, undefined, { signal: signal ? AbortSignal.any([signal, end]) : end }).catch(() => {
      throw signal?.aborted ? cancelled(signal.reason, unknown) : closed(unknown);
    });
  }

  /** Asks for a list with plain values. The next page is asked for when it is needed. */
  async *pages<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: CallOptions & Record<string, unknown>,
  ): AsyncGenerator<MessageShape<O>> {
    const next = { ...toWire(method.input, request), pageToken: "" };
    do {
      const page = await this.unary(method, next, request);
      yield page;
      next.pageToken = (page as unknown as { nextPageToken: string }).nextPageToken;
    } while (next.pageToken !== "");
  }
}

function aborted(signal: AbortSignal | undefined): PgmqError | undefined {
  return signal?.aborted ? cancelled(signal.reason, true) : undefined;
}

export function cancelled(cause: unknown, outcomeUnknown: boolean): PgmqError {
  return new PgmqError("CANCELLED", "the caller has given up", { cause, outcomeUnknown });
}

/** The error of whatever is asked of a client that was closed. */
export function closed(outcomeUnknown = false): PgmqError {
  return new PgmqError("CANCELLED", "the client is closed", { outcomeUnknown });
}
