/** Several operations in one database transaction. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { create } from "@bufbuild/protobuf";
import { fromWire, toWire } from "./convert.js";
import {
  ArchiveRequestSchema,
  DeadLetterRequestSchema,
  DeleteRequestSchema,
  ReleaseRequestSchema,
  SendBatchRequestSchema,
  SendRequestSchema,
  SetVisibilityTimeoutRequestSchema,
  type TransactOperation,
  TransactOperationSchema,
  type TransactResult,
  TransactResultSchema,
} from "./gen/pgmq/v1/queue_service_pb.js";
import { SendTopicRequestSchema } from "./gen/pgmq/v1/topic_service_pb.js";
import type { JsonCodec } from "./json.js";
import { type Message, outgoing } from "./message.js";
import { messagesOf, named, type Targets } from "./settle.js";
import type { ItemResult, OutgoingMessage, SendResult, TopicResult } from "./types.js";

/** Messages to settle: as they were read, which know their queue, or a queue with receipts or ids. */
export type Settled =
  | Message<never>
  | Message
  | readonly Message[]
  | (Exclude<Targets, Message | readonly Message[]> & { readonly queue: string });

/** One operation: a map of one key. */
export type Operation =
  | { send: OutgoingMessage & { queue: string } }
  | { sendBatch: { queue: string; messages: readonly OutgoingMessage[] } }
  | { sendTopic: OutgoingMessage & { routingKey: string; requireMatch?: boolean | undefined } }
  | { delete: Settled }
  | { archive: Settled }
  | { release: Settled; delay?: number | undefined }
  | { deadLetter: Settled; reason?: string | undefined }
  | { setVisibilityTimeout: Settled; visibilityTimeout?: number | undefined; visibleAt?: Date | undefined };

/** What one operation gave: a result for a send, a list of them for a batch or for what was settled. */
export type OperationResult<O> = O extends { send: unknown }
  ? SendResult
  : O extends { sendBatch: unknown }
    ? SendResult[]
    : O extends { sendTopic: unknown }
      ? TopicResult
      : ItemResult[];

const SETTLES = {
  delete: DeleteRequestSchema,
  archive: ArchiveRequestSchema,
  release: ReleaseRequestSchema,
  deadLetter: DeadLetterRequestSchema,
  setVisibilityTimeout: SetVisibilityTimeoutRequestSchema,
} as const;

export function operationToWire(operation: Operation, json: JsonCodec): TransactOperation {
  return create(TransactOperationSchema, { operation: choice(operation, json) });
}

type Choice = NonNullable<MessageInitShape<typeof TransactOperationSchema>["operation"]>;

function choice(operation: Operation, json: JsonCodec): Choice {
  if ("send" in operation) {
    const { $typeName: _, ...message } = outgoing(operation.send, json);
    return { case: "send", value: create(SendRequestSchema, { ...message, queue: operation.send.queue }) };
  }
  if ("sendBatch" in operation) {
    const { queue, messages } = operation.sendBatch;
    const batch = messages.map((message) => outgoing(message, json));
    return { case: "sendBatch", value: create(SendBatchRequestSchema, { queue, messages: batch }) };
  }
  if ("sendTopic" in operation) {
    const { routingKey, requireMatch = false } = operation.sendTopic;
    const { $typeName: _, ...message } = outgoing(operation.sendTopic, json);
    return { case: "sendTopic", value: create(SendTopicRequestSchema, { ...message, routingKey, requireMatch }) };
  }
  const [name, schema] = Object.entries(SETTLES).find(([key]) => key in operation) ?? [];
  if (!name || !schema) return { case: undefined };
  const settled = (operation as Record<string, unknown>)[name] as Targets<unknown>;
  const queue = messagesOf(settled)?.[0]?.queue ?? (settled as { queue?: string }).queue;
  const value = toWire(schema, { ...operation, queue, ...named(settled) });
  return { case: name, value } as Choice;
}

/** The messages that an operation settles, as far as they were given as such. */
export function messagesIn(operation: Operation): readonly Message[] {
  return Object.entries(operation).flatMap(([key, value]) =>
    key in SETTLES && key !== "setVisibilityTimeout" ? (messagesOf(value as Targets<unknown>) ?? []) : [],
  );
}

/** What an operation gave, without the wrapping. */
export function resultFromWire(result: TransactResult): unknown {
  const [reply] = Object.values(fromWire(TransactResultSchema, result)) as Record<string, unknown>[];
  return reply?.results ?? reply;
}
