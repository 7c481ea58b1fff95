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

interface Words {
  send: OutgoingMessage & { queue: string };
  sendBatch: { queue: string; messages: readonly OutgoingMessage[] };
  sendTopic: OutgoingMessage & { routingKey: string; requireMatch?: boolean | undefined };
  delete: Settled;
  archive: Settled;
  release: Settled;
  deadLetter: Settled;
  setVisibilityTimeout: Settled;
}

/** What stands beside a word. */
interface Details {
  release: { delay?: number | undefined };
  deadLetter: { reason?: string | undefined };
  setVisibilityTimeout: { visibilityTimeout?: number | undefined; visibleAt?: Date | undefined };
}

type DetailsOf<Word> = Word extends keyof Details ? Details[Word] : object;
type Key = keyof Words | "delay" | "reason" | "visibilityTimeout" | "visibleAt";

/** One operation: a word with what it is done to, and nothing else but the details of that word. */
export type Operation = {
  [Word in keyof Words]: Record<Word, Words[Word]> &
    DetailsOf<Word> & { [Other in Exclude<Key, Word | keyof DetailsOf<Word>>]?: never };
}[keyof Words];

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

/** The words, and which details stand beside them. */
const DETAILS: { [Word in keyof Words]: readonly string[] } = {
  send: [],
  sendBatch: [],
  sendTopic: [],
  delete: [],
  archive: [],
  release: ["delay"],
  deadLetter: ["reason"],
  setVisibilityTimeout: ["visibilityTimeout", "visibleAt"],
};

export function operationToWire(operation: Operation, json: JsonCodec): TransactOperation {
  checkKeys(operation);
  return create(TransactOperationSchema, { operation: choice(operation, json) });
}

/** An operation that says more than one thing, or none, would be done in part. */
function checkKeys(operation: Operation): void {
  const keys = Object.entries(operation).flatMap(([key, value]) => (value === undefined ? [] : [key]));
  const [word, second] = keys.filter((key) => Object.hasOwn(DETAILS, key));
  if (word === undefined || second !== undefined) {
    throw new TypeError(
      `an operation is one of ${Object.keys(DETAILS).join(", ")}, not ${keys.join(" and ") || "none"}`,
    );
  }
  const stray = keys.find((key) => key !== word && !DETAILS[word as keyof Words].includes(key));
  if (stray !== undefined) throw new TypeError(`an operation that is ${word} takes no ${stray}`);
}

type Choice = NonNullable<MessageInitShape<typeof TransactOperationSchema>["operation"]>;

function choice(operation: Operation, json: JsonCodec): Choice {
  if (operation.send !== undefined) {
    const { $typeName: _, ...message } = outgoing(operation.send, json);
    return { case: "send", value: create(SendRequestSchema, { ...message, queue: operation.send.queue }) };
  }
  if (operation.sendBatch !== undefined) {
    const { queue, messages } = operation.sendBatch;
    const batch = messages.map((message) => outgoing(message, json));
    return { case: "sendBatch", value: create(SendBatchRequestSchema, { queue, messages: batch }) };
  }
  if (operation.sendTopic !== undefined) {
    const { routingKey, requireMatch = false } = operation.sendTopic;
    const { $typeName: _, ...message } = outgoing(operation.sendTopic, json);
    return { case: "sendTopic", value: create(SendTopicRequestSchema, { ...message, routingKey, requireMatch }) };
  }
  const [name, schema] =
    Object.entries(SETTLES).find(([key]) => operation[key as keyof typeof SETTLES] !== undefined) ?? [];
  if (!name || !schema) return { case: undefined };
  const settled = (operation as Record<string, unknown>)[name] as Targets<unknown>;
  const queue = messagesOf(settled)?.[0]?.queue ?? (settled as { queue?: string }).queue;
  const value = toWire(schema, { ...operation, queue, ...named(settled) });
  return { case: name, value } as Choice;
}

/** The messages that an operation settles, as far as they were given as such. */
export function messagesIn(operation: Operation): readonly Message[] {
  return Object.entries(operation).flatMap(([key, value]) =>
    value !== undefined && key in SETTLES && key !== "setVisibilityTimeout"
      ? (messagesOf(value as Targets<unknown>) ?? [])
      : [],
  );
}

/** What an operation gave, without the wrapping. */
export function resultFromWire(result: TransactResult): unknown {
  const [reply] = Object.values(fromWire(TransactResultSchema, result)) as Record<string, unknown>[];
  return reply?.results ?? reply;
}
