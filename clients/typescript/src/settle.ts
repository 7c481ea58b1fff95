/** Settling by unary calls: which messages are meant, and what becomes of them. */
import type { CallOptions, Calls } from "./calls.js";
import { fromWire } from "./convert.js";
import type { PgmqError } from "./errors.js";
import { ItemResultSchema, type ItemResult as WireResult } from "./gen/pgmq/v1/message_pb.js";
import { QueueService } from "./gen/pgmq/v1/queue_service_pb.js";
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
  return fromWire(ItemResultSchema, result);
}

const METHODS = {
  DELETE: QueueService.method.delete,
  ARCHIVE: QueueService.method.archive,
  RELEASE: QueueService.method.release,
  DEAD_LETTER: QueueService.method.deadLetter,
  // Only over a stream does the delivery not count.
  GIVE_BACK: QueueService.method.release,
  EXTEND: QueueService.method.setVisibilityTimeout,
} as const;

export async function settle(
  calls: Calls,
  queue: string,
  targets: Named,
  { action, ...details }: Settlement & { visibleAt?: Date },
  options: CallOptions,
  inHand = false,
): Promise<ItemResult[]> {
  const request = { queue, ...targets, ...details, ...(action === "GIVE_BACK" && { delay: 0 }) };
  try {
    // They all answer alike.
    return (await calls.plain(METHODS[action] as typeof METHODS.DELETE, request, options, { inHand })).results;
  } catch (error) {
    const several = targets.msgIds.length + targets.receipts.length > 1;
    throw several ? (error as PgmqError).ofSeveral() : error;
  }
}
