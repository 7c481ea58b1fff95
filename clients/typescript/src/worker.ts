/** Handlers: what consumes, and settles by how the handler ends. */
import { type ConsumeOptions, Consumer } from "./consumer.js";
import type { Message } from "./message.js";
import type { Queue } from "./queue.js";

export interface WorkOptions extends ConsumeOptions {
  /** How many handlers run at once. 1 without it. */
  concurrency?: number | undefined;
  /** What success does. It deletes unless this says that it archives. */
  onSuccess?: "delete" | "archive" | undefined;
  /** How long a message is hidden whose handler has failed, in milliseconds; without it, as the queue's backoff says. */
  retryDelay?: number | undefined;
}

/**
 * A handler that runs for each message of a queue. Its success deletes the message, or archives it; its exception
 * releases the message with a delay. A message that the handler has settled itself is left alone.
 */
export class Worker<T = unknown> implements AsyncDisposable {
  /** Resolves when the worker has stopped; rejects with an error that no repetition cures, such as a queue that is missing. */
  readonly finished: Promise<void>;
  readonly #queue: Queue<T>;
  readonly #handler: (message: Message<T>) => unknown;
  readonly #options: WorkOptions;
  readonly #consumer: Consumer<T>;

  /** @internal */
  constructor(queue: Queue<T>, handler: (message: Message<T>) => unknown, options: WorkOptions) {
    const { concurrency = 1, maxInFlight = Math.min(1000, 2 * concurrency) } = options;
    this.#queue = queue;
    this.#handler = handler;
    this.#options = options;
    this.#consumer = new Consumer(queue, { ...options, maxInFlight });
    this.finished = Promise.all(Array.from({ length: concurrency }, () => this.#work())).then(() => this.stop());
  }

  /** Takes no more messages, lets the handlers under way finish (at most 30,000 ms, or `timeoutMs`), and ends. */
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
    if (!success) await message.release({ delay: this.#options.retryDelay });
    else if (this.#options.onSuccess === "archive") await message.archive();
    else await message.delete();
  }

  #log(what: string, error: unknown): void {
    this.#queue.client.calls.logger.warn(`worker of ${this.#queue.name}: ${what}: ${String(error)}`);
  }
}
