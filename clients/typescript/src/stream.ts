/** Streams that are opened again when they break: what consumers, producers and watchers have in common. */
import { setTimeout as sleep } from "node:timers/promises";
import { backoff, type Logger } from "./calls.js";
import { milliseconds } from "./convert.js";
import { errorFrom, PgmqError } from "./errors.js";
import type { Closing } from "./gen/pgmq/v1/message_pb.js";
import type { Duration } from "@bufbuild/protobuf/wkt";

/** Commands on their way to the server: what is pushed is sent, in order, until the end. */
export class Outbox<T> implements AsyncIterable<T> {
  readonly #waiting: T[] = [];
  #wake: (() => void) | undefined;
  #ended = false;

  push(command: T): void {
    this.#waiting.push(command);
    this.#wake?.();
  }

  /** Half-closes the stream, once everything is sent. */
  end(): void {
    this.#ended = true;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T> {
    for (;;) {
      const command = this.#waiting.shift();
      if (command !== undefined) yield command;
      else if (this.#ended) return;
      else await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }
}

/** The notices that all streams have. */
export interface Notices {
  started?: { heartbeatInterval?: Duration | undefined } | undefined;
  closing?: Closing | undefined;
}

/** What is done over a stream, each time that there is one. */
export interface Life<Reply extends Notices> {
  /** For the log. */
  readonly name: string;
  open(signal: AbortSignal): AsyncIterable<Reply>;
  received(reply: Reply, heartbeatMs: number | undefined): void;
  /** The stream is over. `planned`: the server has announced that, and answered all that it had read. */
  ended(error: PgmqError, planned: boolean): void;
  /** Whether another stream is wanted after this one. */
  wanted(): boolean;
}

/** How long a stream may take until its first reply. */
const OPENING_MS = 30_000;
const LONGEST_PAUSE_MS = 5000;

/**
 * Keeps a stream open until it is no longer wanted. Rejects with an error that no repetition cures. The signal ends the
 * stream, and the pauses between two.
 */
export async function keepOpen<Reply extends Notices>(
  life: Life<Reply>,
  signal: AbortSignal,
  logger: Logger,
): Promise<void> {
  for (let failures = 0; life.wanted(); failures++) {
    const outcome = await once(life, signal);
    if (outcome.started) failures = 0;
    life.ended(outcome.error, outcome.planned !== undefined);
    if (signal.aborted || !life.wanted()) return;
    if (!outcome.error.curable) throw outcome.error;
    const pause = outcome.planned ?? backoff(failures, LONGEST_PAUSE_MS, outcome.error.retryDelay);
    logger.info(`${life.name}: opened again in ${Math.round(pause)} ms: ${outcome.error.message}`);
    await sleep(pause, undefined, { signal }).catch(() => undefined);
  }
}

interface OneStream {
  started: boolean;
  error: PgmqError;
  /** After a planned end, how long the server asks to wait. */
  planned: number | undefined;
}

async function once<Reply extends Notices>(life: Life<Reply>, signal: AbortSignal): Promise<OneStream> {
  const attempt = new AbortController();
  const giveUp = () => attempt.abort(signal.reason);
  signal.addEventListener("abort", giveUp, { once: true });
  if (signal.aborted) giveUp();
  const silence = setTimeout(() => attempt.abort(new Error("the stream is silent")), OPENING_MS);
  let started = false;
  let closing: Closing | undefined;
  let watch = silence;
  try {
    for await (const reply of life.open(attempt.signal)) {
      let heartbeatMs: number | undefined;
      if (reply.started) {
        started = true;
        heartbeatMs = milliseconds(reply.started.heartbeatInterval as Duration);
        clearTimeout(watch);
        // Twice the longest silence means that nobody is there.
        watch = setTimeout(() => attempt.abort(new Error("the stream is silent")), 2 * heartbeatMs).unref();
      } else watch.refresh();
      closing ??= reply.closing;
      life.received(reply, heartbeatMs);
    }
    const planned = closing && (closing.retryDelay ? milliseconds(closing.retryDelay) : 0);
    const error = new PgmqError("UNAVAILABLE", "the server has ended the stream", { outcomeUnknown: !closing });
    return { started, error, planned };
  } catch (thrown) {
    const error = attempt.signal.aborted
      ? new PgmqError("UNAVAILABLE", String(attempt.signal.reason), { outcomeUnknown: true })
      : errorFrom(thrown);
    return { started, error, planned: undefined };
  } finally {
    clearTimeout(watch);
    signal.removeEventListener("abort", giveUp);
  }
}
