/** Settling by unary calls: which messages are meant, and what becomes of them. */
import { type CallOptions, type Calls } from "./calls.js";
import { fromWire, toWire } from "./convert.js";
import { ItemResultSchema, type ItemResult as WireResult } from "./gen/pgmq/v1/message_pb.js";
import { QueueService, SetVisibilityTimeoutRequestSchema } from "./gen/pgmq/v1/queue_service_pb.js";
import { Message, type Settlement } from "./message.js";
import type { ItemResult, MessageId } from "./types.js";

/** Messages of one queue: one or several as they were read, or by receipts, or by ids, whoever holds them. */
export type Targets<T = never> =
  | Message<T>
  | readonly Message<T>[]
  | { readonly receipts: readonly string[]; readonly msgIds?: readonly MessageId[] }
  | { readonly msgIds: readonly MessageId[]; readonly receipts?: readonly string[] };

export interface Named {
  msgIds: string[];
  receipts: string[];
}

/** The ids or receipts of what is meant. */
export function named(targets: Targets<unknown>): Named {
  const messages = messagesOf(targets);
  if (messages) return { msgIds: [], receipts: messages.map((message) => message.receipt) };
  const { msgIds = [], receipts = [] } = targets as { msgIds?: readonly MessageId[]; receipts?: readonly string[] };
  return { msgIds: msgIds.map(String), receipts: [...receipts] };
}

export function messagesOf(targets: Targets<unknown>): readonly Message[] | undefined {
  if (targets instanceof Message) return [targets];
  return Array.isArray(targets) ? (targets as readonly Message[]) : undefined;
}

export function itemResult(result: WireResult): ItemResult {
  return fromWire(ItemResultSchema, result) as unknown as ItemResult;
}

export async function settle(
  calls: Calls,
  queue: string,
  { msgIds, receipts }: Named,
  { action, delay, reason, visibilityTimeout }: Settlement & { visibleAt?: Date },
  options: CallOptions,
): Promise<ItemResult[]> {
  const { results } = await (() => {
    switch (action) {
      case "DELETE":
        return calls.unary(QueueService.method.delete, { queue, msgIds, receipts }, options);
      case "ARCHIVE":
        return calls.unary(QueueService.method.archive, { queue, msgIds, receipts }, options);
      case "RELEASE":
        return calls.unary(
          QueueService.method.release,
          toWire(QueueService.method.release.input, { queue, receipts, delay }),
          options,
        );
      case "DEAD_LETTER":
        return calls.unary(QueueService.method.deadLetter, { queue, receipts, reason: reason ?? "" }, options);
      case "EXTEND": {
        const request = toWire(SetVisibilityTimeoutRequestSchema, {
          queue,
          msgIds,
          receipts,
          visibilityTimeout,
        });
        return calls.unary(QueueService.method.setVisibilityTimeout, request, options);
      }
    }
  })();
  return results.map(itemResult);
}
