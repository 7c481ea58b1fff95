/** Handlers: what consumes, and settles by how the handler ends. */
import { checkTimeout } from "./calls.js";
import { type ConsumeOptions, Consumer } from "./consumer.js";
import { durationOf } from "./convert.js";
import type { Message } from "./message.js";
import type { Queue } from "./queue.js";

export interface WorkOptions extends ConsumeOptions {
  /** How many handlers run at once. 1 without it. */
  concurrency?: number | undefined;
  /** What success does. It deletes unless this says that it archives. */
  onSuccess?: "delete" | "archive" | undefined;
  /**
   * How long a message is hidden whose handler has failed, in milliseconds. Without it, as the queue's backoff says, or,
   * where the queue has none, a second, and twice that with each further receive, up to a minute.
   */
  retryDelay?: number | undefined;
}

const LONGEST_PAUSE_MS = 60_000;

function checkOptions({ concurrency = 1, onSuccess = "delete", retryDelay = 0 }: WorkOptions): void {
  if (!Number.isInteger(concurrency) || concurrency < 1) {
    throw new RangeError(`concurrency is a number of handlers, not ${concurrency}`);
  }
  if (!["delete", "archive"].includes(onSuccess))
    throw new TypeError(`onSuccess is delete or archive, not ${onSuccess}`);
  checkTimeout(retryDelay, "retryDelay");
  durationOf(retryDelay);
}

/**
 * A handler that runs for each message of a queue. Its success deletes the message, or archives it; its exception
 * releases the message with a delay. A message that the handler has settled itself is left alone.
 */
export class Worker<T = unknown> implements AsyncDisposable {
  /**
   * Resolves when the worker has stopped; rejects with an error that no repetition cures, such as a queue that is missing.
   * The log has that error, too, for those who do not wait for it.
   */
  readonly finished: Promise<void>;
  readonly #queue: Queue<T>;
  readonly #handler: (message: Message<T>) => unknown;
  readonly #options: WorkOptions;
  readonly #consumer: Consumer<T>;

  /** @internal */
  constructor(queue: Queue<T>, handler: (message: Message<T>) => unknown, options: WorkOptions) {
    checkOptions(options);
    const { concurrency = 1, maxInFlight = Math.min(1000, 2 * concurrency) } = options;
    this.#queue = queue;
    this.#handler = handler;
    this.#options = options;
    this.#consumer = new Consumer(queue, { ...options, maxInFlight });
    this.finished = Promise.all(Array.from({ length: concurrency }, () => this.#work())).then(() => this.stop());
    this.finished.catch((error: unknown) => this.#log("it has ended", error));
  }

  /**
   * Takes no more messages, lets the handlers under way finish (at most 30,000 ms, or `timeoutMs`), and ends. A handler may
   * call it, and does not wait for it, because it would wait for itself.
   */
  stop(options: { timeoutMs?: number } = {}): Promise<void> {
    return this.#consumer.stop(options);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  async #work(): Promise<void> {
    for await (const message of this.#consumer) {
      const success = await this.#handle(message);
      await this.#settle(message, success).catch((error: unknown) => {
        this.#log(`${message.msgId} is not settled, and will come back`, error);
        // The consumer, which has it in hand until then, is what stopping waits for.
        void this.#consumer.letGo(message, error);
      });
    }
  }

  async #handle(message: Message<T>): Promise<boolean> {
    try {
      await this.#handler(message);
      return true;
    } catch (error) {
      this.#log(`the handler has failed with ${message.msgId}`, error);
      return false;
    }
  }

  async #settle(message: Message<T>, success: boolean): Promise<void> {
    if (message.isSettled) return;
    if (!success) await message.release({ delay: this.#options.retryDelay ?? this.#pause(message.readCt) });
    else if (this.#options.onSuccess === "archive") await message.archive();
    else await message.delete();
  }

  /** How long a message that has failed stays hidden, unless the queue has a backoff: always failing is no reason to be busy. */
  #pause(readCt: number): number | undefined {
    if (this.#consumer.hasRetryBackoff) return undefined;
    const grown = Math.min(LONGEST_PAUSE_MS, 1000 * 2 ** Math.max(0, readCt - 1));
    return Math.round(grown * (1 - Math.random() / 5));
  }

  #log(what: string, error: unknown): void {
    this.#queue.client.calls.logger.warn(`worker of ${this.#queue.name}: ${what}: ${String(error)}`);
  }
}
