/** Streams that are opened again when they break: what consumers, producers and watchers have in common. */
import { setTimeout as sleep } from "node:timers/promises";
import { backoff } from "./calls.js";
import type { Client } from "./client.js";
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

/** What is done over a line, each time that there is a stream. */
export interface Life<Request, Reply extends Notices> {
  /** For the log. */
  readonly name: string;
  open(outbox: Outbox<Request>, signal: AbortSignal): AsyncIterable<Reply>;
  received(reply: Reply, heartbeatMs: number | undefined): void;
  /** The stream is over. `planned`: the server has announced that, and answered all that it had read. */
  ended?(error: PgmqError, planned: boolean): void;
  /** Whether another stream is wanted after this one. */
  wanted(): boolean;
}

/** How long a stream may take until its first reply. */
const OPENING_MS = 30_000;
const LONGEST_PAUSE_MS = 5000;
/** How long the server may take to end a stream after its last command. */
const FAREWELL_MS = 5000;

/** How one stream has ended. */
interface End {
  started: boolean;
  error: PgmqError;
  /** After a planned end, how long the server asks to wait. */
  planned?: number | undefined;
}

/** A stream that is opened again when it breaks. */
export class Line<Request, Reply extends Notices> {
  /** Where commands go, while there is a stream that the server has confirmed. */
  outbox: Outbox<Request> | undefined;
  readonly #client: Client;
  readonly #life: Life<Request, Reply>;
  readonly #end = new AbortController();
  #running: Promise<void> | undefined;

  constructor(client: Client, life: Life<Request, Reply>) {
    this.#client = client;
    this.#life = life;
  }

  /** Whether it is open, or about to be. */
  get running(): boolean {
    return this.#running !== undefined;
  }

  /**
   * Keeps a stream open until it is no longer wanted; a client that is closed until then stops its owner by `stop`. Rejects
   * with an error that no repetition cures.
   */
  run(stop: () => Promise<void>): Promise<void> {
    if (this.#running) return this.#running;
    const untrack = this.#client.track(stop);
    this.#running = this.#keepOpen().finally(() => {
      untrack();
      this.#running = undefined;
    });
    return this.#running;
  }

  /** Ends at once whatever there is. */
  abort(): void {
    this.#end.abort();
  }

  /** Ends the stream once everything is sent and answered. */
  async leave(): Promise<void> {
    if (this.outbox) this.outbox.end();
    else this.abort();
    const limit = setTimeout(() => this.abort(), FAREWELL_MS);
    await this.#running?.catch(() => undefined);
    clearTimeout(limit);
  }

  async #keepOpen(): Promise<void> {
    const { signal } = this.#end;
    const wanted = () => !signal.aborted && this.#life.wanted();
    for (let failures = 0; wanted(); failures++) {
      const { started, error, planned } = await this.#once();
      if (started) failures = 0;
      this.outbox = undefined;
      this.#life.ended?.(error, planned !== undefined);
      if (!wanted()) return;
      if (!error.curable) throw error;
      const pause = planned ?? backoff(failures, LONGEST_PAUSE_MS, error.retryDelay);
      const { logger } = this.#client.calls;
      logger.info(`${this.#life.name}: opened again in ${Math.round(pause)} ms: ${error.message}`);
      await sleep(pause, undefined, { signal }).catch(() => undefined);
    }
  }

  async #once(): Promise<End> {
    const attempt = new AbortController();
    const signal = AbortSignal.any([attempt.signal, this.#end.signal]);
    const silent = () => attempt.abort(new Error("the stream is silent"));
    const outbox = new Outbox<Request>();
    let watch = setTimeout(silent, OPENING_MS);
    let started = false;
    let closing: Closing | undefined;
    try {
      for await (const reply of this.#life.open(outbox, signal)) {
        let heartbeatMs: number | undefined;
        if (reply.started) {
          started = true;
          this.outbox = outbox;
          heartbeatMs = milliseconds(reply.started.heartbeatInterval as Duration);
          clearTimeout(watch);
          // Twice the longest silence means that nobody is there.
          watch = setTimeout(silent, 2 * heartbeatMs).unref();
        } else watch.refresh();
        closing ??= reply.closing;
        this.#life.received(reply, heartbeatMs);
      }
      const error = new PgmqError("UNAVAILABLE", "the server has ended the stream", { outcomeUnknown: !closing });
      return { started, error, planned: closing && (closing.retryDelay ? milliseconds(closing.retryDelay) : 0) };
    } catch (thrown) {
      const error = signal.aborted
        ? new PgmqError("UNAVAILABLE", String(signal.reason), { outcomeUnknown: true })
        : errorFrom(thrown);
      return { started, error };
    } finally {
      clearTimeout(watch);
    }
  }
}
