/** Waiting: for answers, no longer than the caller wants to, and for what is to be. */
import { type CallOptions, cancelled } from "./calls.js";
import { PgmqError } from "./errors.js";

/** The longest time that a timer of Node.js takes. */
export const LONGEST_MS = 2 ** 31 - 1;

/** A caller who waits. Only the first answer counts. */
export class Waiter<Answer> {
  /** Whether there is an answer. */
  over = false;
  /** Whether what was asked for may have been done, should nothing more be heard of it. */
  left = false;
  readonly #promise: Promise<Answer>;
  readonly #signal: AbortSignal | undefined;
  readonly #limit: NodeJS.Timeout;
  #resolve!: (answer: Answer) => void;
  #reject!: (error: PgmqError) => void;

  /** `deadline` is by the clock of `Date.now`. `ended` is told once, when the caller waits no more. */
  constructor(
    readonly deadline: number,
    { signal }: CallOptions,
    private readonly ended: () => void = () => undefined,
  ) {
    this.#promise = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.#limit = setTimeout(() => this.#late(), Math.min(deadline - Date.now(), LONGEST_MS));
    this.#signal = signal;
    signal?.addEventListener("abort", this.#cancel, { once: true });
    if (signal?.aborted) this.#cancel();
  }

  /** The answer. Its error tells where the caller waits, not where the stream has told it. */
  async answer(): Promise<Answer> {
    try {
      return await this.#promise;
    } catch (error) {
      Error.captureStackTrace(error as PgmqError);
      throw error;
    }
  }

  resolve(answer: Answer): void {
    if (this.#end()) this.#resolve(answer);
  }

  reject(error: PgmqError): void {
    if (this.#end()) this.#reject(error);
  }

  #late(): void {
    this.reject(new PgmqError("DEADLINE_EXCEEDED", "there was no answer in time", { outcomeUnknown: this.left }));
  }

  readonly #cancel = (): void => this.reject(cancelled(this.#signal?.reason, this.left));

  #end(): boolean {
    if (this.over) return false;
    this.over = true;
    clearTimeout(this.#limit);
    this.#signal?.removeEventListener("abort", this.#cancel);
    this.ended();
    return true;
  }
}

/** Something that changes, and those who wait until it is as they want it. */
export class Change {
  #waiting: (() => void)[] = [];

  /** Lets those who wait look again. */
  tell(): void {
    for (const look of this.#waiting.splice(0)) look();
  }

  /** Waits until something holds, or the time is over. */
  async until(holds: () => boolean, timeoutMs = LONGEST_MS): Promise<void> {
    const end = Date.now() + timeoutMs;
    const limit = setTimeout(() => this.tell(), Math.min(timeoutMs, LONGEST_MS));
    while (!holds() && Date.now() < end) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    clearTimeout(limit);
  }
}
