/** What goes into calls and comes out of them. Spans are milliseconds, moments are `Date`, ids are strings of digits. */
import type * as admin from "./gen/pgmq/v1/admin_service_pb.js";
import type * as message from "./gen/pgmq/v1/message_pb.js";
import type * as queue from "./gen/pgmq/v1/queue_service_pb.js";
import type { CallOptions } from "./calls.js";
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

export interface SendResult {
  msgId: string;
  /** Whether an earlier message with the same deduplication id is meant. */
  deduplicated: boolean;
}

export interface TopicCopy extends SendResult {
  queue: string;
  /** Which message of the call this is a copy of. */
  messageIndex: number;
}

export interface TopicResult {
  copies: TopicCopy[];
  deduplicated: boolean;
}

export interface ItemResult {
  outcome: Outcome;
  /** When the message becomes visible, where the call has set that. */
  vt?: Date;
}

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

export interface QueueMetrics {
  queue: string;
  queueLength: number;
  visibleLength: number;
  inFlightLength: number;
  delayedLength: number;
  newestMessageAge?: number;
  oldestMessageAge?: number;
  oldestVisibleMessageAge?: number;
  totalMessages: number;
  defaultPartitionLength?: number;
  archiveLength?: number;
  scrapedAt?: Date;
  deadLetteredCount: number;
  redrivenCount: number;
  replayedCount: number;
  /** Why this queue cannot be measured, in a list. */
  error?: { code: number; reason: string; message: string; metadata: Record<string, string> };
}

export interface TopicBinding {
  pattern: string;
  queue: string;
  boundAt?: Date;
  compiledRegex: string;
}

export interface NotificationSettings {
  queue: string;
  throttleInterval: number;
  lastNotifiedAt?: Date;
}

export interface ClientInfo {
  name: string;
  role: ClientRole;
  queue: string;
  address: string;
  replica: string;
  inFlight: number;
  since: Date;
  lastSeen: Date;
}

export interface ServerInfo {
  serverVersion: string;
  replica: string;
  pgmqVersion: string;
  pgmqInstalledBy: string;
  postgresVersion: string;
  capabilities: string[];
  state: Record<string, unknown>;
}

/** Which messages of an archive are meant: those that meet all conditions. None means the whole archive. */
export interface ArchiveFilter {
  msgIds?: readonly MessageId[] | undefined;
  archivedAfter?: Date | undefined;
  archivedBefore?: Date | undefined;
}

export interface QueueEvent {
  queue: string;
  kind: QueueEventKind;
  at: Date;
}

export interface PageOptions extends CallOptions {
  /** How many to ask the server for at a time. */
  pageSize?: number | undefined;
}
