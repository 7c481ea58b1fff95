/** Watching queues, over a stream that survives restarts. */
import type { Client } from "./client.js";
import { fromWire } from "./convert.js";
import { PgmqError } from "./errors.js";
import { QueueEventSchema, type WatchResponse } from "./gen/pgmq/v1/queue_service_pb.js";
import { Inbox } from "./inbox.js";
import { Line } from "./stream.js";
import type { QueueEvent } from "./types.js";
import { LONGEST_MS } from "./waiting.js";

/**
 * What happens to queues: `for await (const event of queue.watch())`. An event is a hint to look, not a count. What
 * happens while the stream is away is not told, but for messages that are visible when it is back.
 */
export class Watcher implements AsyncIterable<QueueEvent>, AsyncDisposable {
  readonly #inbox = new Inbox<QueueEvent>();
  readonly #line: Line<never, WatchResponse>;
  readonly #client: Client;
  #running: Promise<PgmqError | undefined> | undefined;
  #started!: () => void;
  readonly #ready = new Promise<void>((resolve) => (this.#started = resolve));

  /** @internal */
  constructor(client: Client, queues: readonly string[], signal: AbortSignal | undefined) {
    this.#client = client;
    this.#line = new Line(client, {
      name: `watch of ${queues.join(", ")}`,
      open: (_, signal) => client.raw.queues.watch({ queues: [...queues] }, { signal }),
      received: (reply) => {
        if (reply.started) this.#started();
        for (const event of reply.events) this.#inbox.push(fromWire(QueueEventSchema, event) as QueueEvent);
      },
      wanted: () => true,
    });
    signal?.addEventListener("abort", () => void this.stop(), { once: true });
    if (signal?.aborted) void this.stop();
  }

  /** Resolves once the server has confirmed that it watches: what happens from then on is told. */
  async ready(): Promise<this> {
    const error = await Promise.race([this.#ready, this.#run()]);
    if (error) throw error;
    return this;
  }

  /** Ends the watch. */
  async stop(): Promise<void> {
    this.#line.abort();
    await this.#running;
    this.#inbox.end();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  [Symbol.asyncIterator](): AsyncIterator<QueueEvent, undefined> {
    void this.#run();
    return {
      next: () => this.#inbox.next(),
      return: async () => {
        await this.stop();
        return { done: true, value: undefined };
      },
    };
  }

  /**
   * Watches from the first call on, if the server confirms that within the time of a call. Resolves at the end, with the
   * error that it is.
   */
  #run(): Promise<PgmqError | undefined> {
    this.#running ??= this.#watch().then((error) => {
      this.#inbox.end(error);
      return error;
    });
    return this.#running;
  }

  async #watch(): Promise<PgmqError | undefined> {
    let late: PgmqError | undefined;
    const limit = setTimeout(
      () => {
        late = new PgmqError("DEADLINE_EXCEEDED", "no server has confirmed the watch in time", {
          outcomeUnknown: true,
        });
        this.#line.abort();
      },
      Math.min(this.#client.calls.deadline({}) - Date.now(), LONGEST_MS),
    );
    void this.#ready.then(() => clearTimeout(limit));
    try {
      this.#client.calls.checkOpen();
      await this.#line.run(() => this.stop());
      return late;
    } catch (error) {
      return error as PgmqError;
    } finally {
      clearTimeout(limit);
    }
  }
}
