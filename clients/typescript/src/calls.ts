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
  /** How long the call may take with its repeats, in milliseconds. 30,000 unless the client was told otherwise. */
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

/** What the server has answered, which sets every field. */
export type Reply<O extends DescMessage> = Required<Plain<MessageShape<O>>>;

export class Calls {
  constructor(
    readonly transport: Transport,
    readonly json: JsonCodec,
    readonly logger: Logger,
    private readonly timeoutMs: number,
  ) {}

  /** The deadline of a call, by the clock of `Date.now`. */
  deadline(options: CallOptions): number {
    return Date.now() + (options.timeoutMs ?? this.timeoutMs);
  }

  /** Makes a call with plain values, as {@link toWire} and {@link fromWire} know them. */
  async plain<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: object,
    options: CallOptions,
  ): Promise<Reply<O>> {
    const reply = await this.unary(method, toWire(method.input, request), options);
    return fromWire(method.output, reply) as unknown as Reply<O>;
  }

  /** Makes a call. `keyed`: its messages have deduplication ids, so it may be repeated. */
  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    options: CallOptions,
    { keyed = false, extraMs = 0 }: { keyed?: boolean; extraMs?: number } = {},
  ): Promise<MessageShape<O>> {
    const deadline = this.deadline(options) + extraMs;
    let unknown = false;
    for (let failures = 0; ; failures++) {
      try {
        const left = Math.max(1, deadline - Date.now());
        const reply = await this.transport.unary(method, options.signal, left, undefined, request);
        return reply.message;
      } catch (thrown) {
        const error = aborted(options.signal) ?? errorFrom(thrown);
        unknown ||= error.outcomeUnknown;
        const safe = error.reason !== undefined || !error.outcomeUnknown || keyed || REPEATABLE.has(method.name);
        const pause = backoff(failures, 2000, error.retryDelay);
        const inTime = failures < REPEATS && Date.now() + pause < deadline;
        if (error.code !== "UNAVAILABLE" || !safe || !inTime) throw unknown ? error.withOutcomeUnknown() : error;
        this.logger.debug(`${method.name} failed, is repeated in ${Math.round(pause)} ms: ${error.message}`);
        await pauseFor(pause, options.signal, unknown);
      }
    }
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

async function pauseFor(pause: number, signal: AbortSignal | undefined, unknown: boolean): Promise<void> {
  await sleep(pause, undefined, signal ? { signal } : {}).catch(() => {
    throw cancelled(signal?.reason, unknown);
  });
}

function aborted(signal: AbortSignal | undefined): PgmqError | undefined {
  return signal?.aborted ? cancelled(signal.reason, true) : undefined;
}

export function cancelled(cause: unknown, outcomeUnknown: boolean): PgmqError {
  return new PgmqError("CANCELLED", "the caller has given up", { cause, outcomeUnknown });
}
