/** Watching queues, over a stream that survives restarts. */
import type { Client } from "./client.js";
import { fromWire } from "./convert.js";
import type { PgmqError } from "./errors.js";
import { QueueEventSchema, type WatchResponse } from "./gen/pgmq/v1/queue_service_pb.js";
import { Inbox } from "./inbox.js";
import { keepOpen, type Life } from "./stream.js";
import type { QueueEvent } from "./types.js";

/**
 * What happens to queues: `for await (const event of queue.watch())`. An event is a hint to look, not a count. What
 * happens while the stream is away is not told, but for messages that are visible when it is back.
 */
export class Watcher implements AsyncIterable<QueueEvent>, AsyncDisposable {
  readonly #client: Client;
  readonly #inbox = new Inbox<QueueEvent>();
  readonly #end = new AbortController();
  readonly #queues: readonly string[];
  #running: Promise<void> | undefined;
  #started!: () => void;
  readonly #ready = new Promise<void>((resolve) => (this.#started = resolve));

  /** @internal */
  constructor(client: Client, queues: readonly string[], signal: AbortSignal | undefined) {
    this.#client = client;
    this.#queues = queues;
    signal?.addEventListener("abort", () => void this.stop(), { once: true });
    if (signal?.aborted) void this.stop();
  }

  /** Resolves once the server has confirmed that it watches: what happens from then on is told. */
  async ready(): Promise<this> {
    await Promise.race([this.#ready, this.#run()]);
    return this;
  }

  /** Ends the watch. */
  async stop(): Promise<void> {
    this.#end.abort();
    await this.#running?.catch(() => undefined);
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

  #run(): Promise<void> {
    this.#running ??= this.#watch();
    return this.#running;
  }

  async #watch(): Promise<void> {
    const untrack = this.#client.track(this);
    const life: Life<WatchResponse> = {
      name: `watch of ${this.#queues.join(", ")}`,
      open: (signal) => this.#client.raw.queues.watch({ queues: [...this.#queues] }, { signal }),
      received: (reply) => {
        if (reply.started) this.#started();
        for (const event of reply.events) this.#inbox.push(fromWire(QueueEventSchema, event) as unknown as QueueEvent);
      },
      ended: () => undefined,
      wanted: () => !this.#end.signal.aborted,
    };
    try {
      await keepOpen(life, this.#end.signal, this.#client.calls.logger);
      this.#inbox.end();
    } catch (error) {
      this.#inbox.end(error as PgmqError);
      throw error;
    } finally {
      untrack();
    }
  }
}
