/** What has come and was not asked for yet, or was asked for and has not come yet. */
export class Inbox<T> {
  #items: T[] = [];
  #askers: { resolve(result: IteratorResult<T, undefined>): void; reject(error: Error): void }[] = [];
  #over: { error: Error | undefined } | undefined;

  /** How many are here. */
  get length(): number {
    return this.#items.length;
  }

  push(item: T): void {
    const asker = this.#askers.shift();
    if (asker) asker.resolve({ done: false, value: item });
    else this.#items.push(item);
  }

  /** The next one; at the end, what the end is. Whatever has come before the end is given first. */
  next(): Promise<IteratorResult<T, undefined>> {
    const item = this.#items.shift();
    if (item !== undefined) return Promise.resolve({ done: false, value: item });
    if (this.#over) return this.#over.error ? Promise.reject(this.#over.error) : Promise.resolve(OVER);
    return new Promise((resolve, reject) => this.#askers.push({ resolve, reject }));
  }

  /** Nothing more comes. Only the first end counts. */
  end(error?: Error): void {
    this.#over ??= { error };
    for (const asker of this.#askers.splice(0)) {
      if (error) asker.reject(error);
      else asker.resolve(OVER);
    }
  }

  /** Takes everything that nobody has asked for. */
  drain(): T[] {
    return this.#items.splice(0);
  }
}

const OVER: IteratorReturnResult<undefined> = { done: true, value: undefined };
