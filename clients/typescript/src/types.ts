/** What goes into calls and comes out of them. Spans are milliseconds, moments are `Date`, ids are strings of digits. */
import type { Message } from "@bufbuild/protobuf";
import type { Duration, Timestamp } from "@bufbuild/protobuf/wkt";
import type * as admin from "./gen/pgmq/v1/admin_service_pb.js";
import type * as message from "./gen/pgmq/v1/message_pb.js";
import type * as queue from "./gen/pgmq/v1/queue_service_pb.js";
import type * as topic from "./gen/pgmq/v1/topic_service_pb.js";
import type { CallOptions } from "./calls.js";
import type { ErrorReason } from "./errors.js";
import type { JsonText } from "./json.js";

type Word<E> = Exclude<keyof E, "UNSPECIFIED"> & string;

/** What became of a message: DONE, NOT_FOUND (gone already: treat it as done), or STALE (another has it now). */
export type Outcome = Word<typeof message.Outcome>;
export type Ordering = Word<typeof message.Ordering>;
export type QueueKind = Word<typeof queue.QueueKind>;
export type QueueLayout = Word<typeof queue.QueueLayout>;
export type SettleAction = Word<typeof queue.SettleAction>;
export type QueueEventKind = Word<typeof queue.QueueEventKind>;
export type MessageState = Word<typeof admin.MessageState>;
export type ClientRole = Word<typeof admin.ClientRole>;

type Value<V> = V extends undefined
  ? never
  : V extends bigint | Duration
    ? number
    : V extends Timestamp
      ? Date
      : V extends queue.QueuePolicy
        ? QueuePolicy
        : V extends Message
          ? Plain<V>
          : V extends readonly (infer Item)[]
            ? Value<Item>[]
            : V extends number
              ? NumberOrWord<V>
              : V;

/** Enumerations are words. TypeScript tells them from numbers, which it lets pass for them, only as texts. */
type NumberOrWord<V extends number> = `${number}` extends `${V}`
  ? V
  : V extends message.Outcome
    ? Outcome
    : V extends queue.QueueKind
      ? QueueKind
      : V extends queue.QueueLayout
        ? QueueLayout
        : V extends queue.QueueEventKind
          ? QueueEventKind
          : V extends admin.ClientRole
            ? ClientRole
            : ErrorReason;

/** A message of the contract in plain values. What its fields mean is written there. */
export type Plain<M> = { [Field in keyof M as Field extends `$${string}` ? never : Field]: Value<M[Field]> };

/** An id as it is taken: the client gives ids out as strings, because they may be beyond 2^53. */
export type MessageId = string | number | bigint;

/** How a message is sent, beside its body. */
export interface SendSettings {
  /** An object, or its text. */
  headers?: Readonly<Record<string, unknown>> | JsonText | undefined;
  /** How long the message stays invisible, in milliseconds. */
  delay?: number | undefined;
  /** When the message becomes visible, in place of {@link delay}. */
  visibleAt?: Date | undefined;
  /** The group, for grouped orderings. */
  group?: string | undefined;
  /** Names the message, so that it can be sent again without being stored twice. */
  deduplicationId?: string | undefined;
  /** Lets the client make up a deduplication id, so that the send is repeated when its outcome is unknown. */
  idempotent?: boolean | undefined;
}

export interface OutgoingMessage<T = unknown> extends SendSettings {
  message: T | JsonText;
}

export type SendResult = Plain<message.SendResult>;

export type TopicCopy = Plain<topic.TopicCopy>;

export type TopicResult = Plain<topic.SendTopicResponse>;

/** What became of one message, and when it becomes visible, where the call has set that. */
export type ItemResult = Plain<message.ItemResult>;

export interface ReadOptions extends CallOptions {
  /** 1 to 1,000; 1 without it. */
  maxMessages?: number | undefined;
  visibilityTimeout?: number | undefined;
  /** How long to wait for a first message, in milliseconds. */
  wait?: number | undefined;
  ordering?: Ordering | undefined;
  /** Only messages whose body contains this. */
  conditional?: unknown;
}

export interface DeadLetterPolicy {
  queue: string;
  maxReceives: number;
}

export interface RetryBackoff {
  minimum: number;
  maximum: number;
  multiplier?: number | undefined;
  jitter?: number | undefined;
}

/** What holds in a queue where a call leaves it open. */
export interface QueuePolicy {
  defaultVisibilityTimeout?: number | undefined;
  defaultDelay?: number | undefined;
  defaultWait?: number | undefined;
  maxMessageBytes?: number | undefined;
  deadLetter?: DeadLetterPolicy | undefined;
  retryBackoff?: RetryBackoff | undefined;
  deduplicationWindow?: number | undefined;
  defaultOrdering?: Ordering | undefined;
  archiveRetention?: number | undefined;
}

/** Fields of a policy to change: a value sets one, and null clears it. */
export type PolicyChange = { [Field in keyof QueuePolicy]: QueuePolicy[Field] | null };

export interface Partitioning {
  interval?: string | undefined;
  retention?: string | undefined;
  premake?: number | undefined;
}

export interface QueueInfo {
  /** Another one for each queue of the same name. */
  id: string;
  name: string;
  kind: QueueKind;
  createdAt: Date;
  /** Undefined where the table is missing. */
  layout?: QueueLayout;
  policy?: QueuePolicy;
}

export interface CreateQueueOptions extends CallOptions {
  kind?: QueueKind | undefined;
  policy?: QueuePolicy | undefined;
  partitioning?: Partitioning | undefined;
  layout?: QueueLayout | undefined;
  failIfExists?: boolean | undefined;
}

export type QueueMetrics = Plain<queue.QueueMetrics>;

export type TopicBinding = Plain<topic.TopicBinding>;

export type NotificationSettings = Plain<admin.NotificationSettings>;

export type ClientInfo = Required<Plain<admin.Client>>;

export type ServerInfo = Plain<queue.GetServerInfoResponse>;

/** Which messages of an archive are meant: those that meet all conditions. None means the whole archive. */
export interface ArchiveFilter {
  msgIds?: readonly MessageId[] | undefined;
  archivedAfter?: Date | undefined;
  archivedBefore?: Date | undefined;
}

export type QueueEvent = Required<Plain<queue.QueueEvent>>;

export interface PageOptions extends CallOptions {
  /** How many to ask the server for at a time. */
  pageSize?: number | undefined;
}
