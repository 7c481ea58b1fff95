/** The sends of a client. */
import type { CallOptions } from "./calls.js";
import type { Client } from "./client.js";
import type { OutgoingMessage as WireMessage } from "./gen/pgmq/v1/message_pb.js";
import { QueueService } from "./gen/pgmq/v1/queue_service_pb.js";
import { bytesOf } from "./message.js";
import type { Producer } from "./producer.js";
import type { SendResult } from "./types.js";
import { Change } from "./waiting.js";

/** How long a stream stays open after the last send. */
const IDLE_MS = 10_000;
/** Larger messages gain nothing from a stream, and hold up those behind them. */
const MOST_BYTES = 1 << 20;

interface Shared {
  producer: Producer;
  idle: NodeJS.Timeout;
}

/** Sends alone by a unary call, and what is sent meanwhile over a stream for each queue. */
export class Sender {
  readonly #shared = new Map<string, Shared>();
  #underWay = 0;
  readonly #change = new Change();

  constructor(private readonly client: Client) {}

  async send(queue: string, message: WireMessage, options: CallOptions): Promise<SendResult> {
    this.client.calls.checkOpen();
    const alone = this.#underWay++ === 0;
    try {
      if (!alone && bytesOf(message) <= MOST_BYTES) return await this.#producer(queue).enqueue(message, options);
      return await this.#unary(queue, message, options);
    } finally {
      this.#underWay--;
      this.#change.tell();
    }
  }

  /** Waits for what is under way, and ends the streams. */
  async close(): Promise<void> {
    await this.#change.until(() => this.#underWay === 0);
    await Promise.all([...this.#shared.keys()].map((name) => this.#end(name)));
  }

  #producer(queue: string): Producer {
    let shared = this.#shared.get(queue);
    if (!shared) {
      // The stream keeps the process alive, and not the wait for its end.
      const idle = setTimeout(() => void this.#end(queue), IDLE_MS).unref();
      shared = { producer: this.client.queue(queue).producer(), idle };
      this.#shared.set(queue, shared);
    }
    shared.idle.refresh();
    return shared.producer;
  }

  async #end(name: string): Promise<void> {
    const shared = this.#shared.get(name);
    this.#shared.delete(name);
    clearTimeout(shared?.idle);
    await shared?.producer.close();
  }

  async #unary(queue: string, message: WireMessage, options: CallOptions): Promise<SendResult> {
    const { $typeName: _, ...body } = message;
    const keyed = { keyed: message.deduplicationId !== "" };
    const { msgId, deduplicated } = await this.client.calls.unary(
      QueueService.method.send,
      { ...body, queue },
      options,
      keyed,
    );
    return { msgId, deduplicated };
  }
}
