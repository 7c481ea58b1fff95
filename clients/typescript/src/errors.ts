/** The one kind of error that calls end with. */
import { ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { type CommandError, ErrorReason as WireReason, ErrorReasonSchema } from "./gen/pgmq/v1/error_pb.js";
import { enumWord, milliseconds } from "./convert.js";

const CODES = [
  "OK",
  "CANCELLED",
  "UNKNOWN",
  "INVALID_ARGUMENT",
  "DEADLINE_EXCEEDED",
  "NOT_FOUND",
  "ALREADY_EXISTS",
  "PERMISSION_DENIED",
  "RESOURCE_EXHAUSTED",
  "FAILED_PRECONDITION",
  "ABORTED",
  "OUT_OF_RANGE",
  "UNIMPLEMENTED",
  "INTERNAL",
  "UNAVAILABLE",
  "DATA_LOSS",
  "UNAUTHENTICATED",
] as const;

/** A code of gRPC. */
export type GrpcCode = (typeof CODES)[number];

/** Why a call failed: a word of the contract's `ErrorReason`, or one of a newer server as it came. */
export type ErrorReason = Exclude<keyof typeof WireReason, "UNSPECIFIED"> | (string & {});

/** Codes that no repetition of the same call cures. */
const FINAL: ReadonlySet<GrpcCode> = new Set([
  "INVALID_ARGUMENT",
  "NOT_FOUND",
  "ALREADY_EXISTS",
  "PERMISSION_DENIED",
  "FAILED_PRECONDITION",
  "OUT_OF_RANGE",
  "UNIMPLEMENTED",
  "UNAUTHENTICATED",
]);

/** Reasons of the server's that leave open whether anything was applied. */
const OPEN: ReadonlySet<string> = new Set([
  "OUTCOME_UNKNOWN",
  "OUTCOME_UNKNOWN_RETRY_SAFE",
  "DEADLINE_EXCEEDED",
  "INTERNAL",
]);

/** Reasons that concern one message of several that are settled: others may be settled. */
const OF_ONE: ReadonlySet<string> = new Set(["QUEUE_BUSY", "REFUSED_BY_DATABASE"]);

/** Codes that leave it open where the reason is not known to this client. */
const OPEN_CODES: ReadonlySet<GrpcCode> = new Set([
  "UNKNOWN",
  "INTERNAL",
  "DEADLINE_EXCEEDED",
  "CANCELLED",
  "UNAVAILABLE",
]);

interface Facts {
  reason?: ErrorReason | undefined;
  metadata?: Readonly<Record<string, string>> | undefined;
  requestId?: string | undefined;
  retryDelay?: number | undefined;
  outcomeUnknown: boolean;
  cause?: unknown;
}

/** A call that failed. Decide by {@link code} and {@link reason}: the text is for people, and may change. */
export class PgmqError extends Error {
  override readonly name = "PgmqError";
  /** The code of gRPC. */
  readonly code: GrpcCode;
  /** Why, in the contract's words. Undefined where it was not the server who refused. */
  readonly reason: ErrorReason | undefined;
  /** The path of the field that is wrong, such as `messages[17].message`. */
  readonly field: string | undefined;
  /** The values that belong to the reason. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The id under which the server's log knows the call. */
  readonly requestId: string | undefined;
  /** How long the server asks to wait before the call is made again, in milliseconds. */
  readonly retryDelay: number | undefined;
  /** Whether the call may have been applied. False only where the server says so, or where the call has not left. */
  readonly outcomeUnknown: boolean;

  constructor(code: GrpcCode, message: string, facts: Facts) {
    super(message, facts.cause === undefined ? undefined : { cause: facts.cause });
    this.code = code;
    this.reason = facts.reason;
    this.metadata = facts.metadata ?? {};
    this.field = this.metadata.field;
    this.requestId = facts.requestId;
    this.retryDelay = facts.retryDelay;
    this.outcomeUnknown = facts.outcomeUnknown;
  }

  /** Whether the same call can succeed later. */
  get curable(): boolean {
    return !FINAL.has(this.code);
  }

  /** @internal Whether it says nothing about other messages that were settled by the same call. */
  get ofOne(): boolean {
    return OF_ONE.has(this.reason ?? "");
  }

  /** @internal The same error of a call that was to settle several messages. */
  ofSeveral(): PgmqError {
    return this.ofOne ? this.withOutcomeUnknown() : this;
  }

  /** @internal The same error of a call an earlier try of which may have been applied. */
  withOutcomeUnknown(): PgmqError {
    return this.outcomeUnknown
      ? this
      : new PgmqError(this.code, this.message, { ...(this as Facts), outcomeUnknown: true });
  }
}

/** A connection that could not be made: the call has not left. */
export class NotSentError extends ConnectError {
  readonly notSent = true;
}

/** The error that a call or a stream ended with, whoever made it up. */
export function errorFrom(thrown: unknown): PgmqError {
  if (thrown instanceof PgmqError) return thrown;
  const error = ConnectError.from(thrown);
  // Connect wraps what the client's own interceptor has thrown.
  if (error.cause instanceof PgmqError) return error.cause;
  const [info] = error.findDetails(ErrorInfoSchema).filter((detail) => detail.domain === "pgmq.v1");
  const [retry] = error.findDetails(RetryInfoSchema);
  const reason = info?.reason ?? error.metadata.get("pgmq-reason") ?? undefined;
  const code = isUnwritable(error) ? "INVALID_ARGUMENT" : (CODES[error.code] as GrpcCode);
  const pushback = error.metadata.get("grpc-retry-pushback-ms");
  return new PgmqError(isTransport(error, code) ? "UNAVAILABLE" : code, error.rawMessage, {
    reason,
    metadata: info?.metadata,
    requestId: error.metadata.get("x-request-id") ?? undefined,
    retryDelay: retry?.retryDelay ? milliseconds(retry.retryDelay) : pushback ? Number(pushback) : undefined,
    outcomeUnknown: reason === undefined ? !isUnsent(error) : isOpen(reason, code),
    // What the server has said is all there is to know.
    cause: reason === undefined ? (error.cause ?? thrown) : undefined,
  });
}

/** The error of one message or command of a stream. */
export function errorFromCommand(error: CommandError): PgmqError {
  const code = CODES[error.code] ?? "UNKNOWN";
  const reason = enumWord(ErrorReasonSchema, error.reason);
  return new PgmqError(code, error.message, {
    reason,
    metadata: error.metadata,
    requestId: error.requestId || undefined,
    retryDelay: error.retryDelay && milliseconds(error.retryDelay),
    outcomeUnknown: isOpen(reason, code),
  });
}

function isOpen(reason: string, code: GrpcCode): boolean {
  return reason in WireReason ? OPEN.has(reason) : OPEN_CODES.has(code);
}

function isUnsent(error: ConnectError): boolean {
  return (
    "notSent" in error ||
    // The server, or the connection's end, has turned the request away before anybody looked at it.
    error.rawMessage.includes("REFUSED_STREAM") ||
    isUnwritable(error)
  );
}

/** A request that cannot be written, such as one with a number out of the field's range. */
function isUnwritable(error: ConnectError): boolean {
  return error.rawMessage.startsWith("serialize binary");
}

/** Whether the connection failed, which has no code of its own: nobody has sent a status, and nobody has given up. */
function isTransport(error: ConnectError, code: GrpcCode): boolean {
  if ("notSent" in error) return true;
  const answered = [...error.metadata.keys()].length > 0;
  return !answered && code !== "DEADLINE_EXCEEDED" && !isUnwritable(error);
}
