/** Values of cases: names and references in them, how they are compared, and what they are in TypeScript. */
import { isDeepStrictEqual } from "node:util";
import { LosslessNumber, Message, PgmqError } from "pgmq-grpc";

export type Plain = Record<string, unknown>;

export function isMap(value: unknown): value is Plain {
  return typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype;
}

/** Fields whose value is the application's own: nothing in it is a span or a moment. */
const BODIES = new Set(["message", "headers", "conditional"]);

const SPANS = new Set([
  "delay",
  "visibility_timeout",
  "wait",
  "retry_delay",
  "default_visibility_timeout",
  "default_delay",
  "default_wait",
  "minimum",
  "maximum",
  "deduplication_window",
  "archive_retention",
  "throttle_interval",
  "max_extension",
  "heartbeat_interval",
  "newest_message_age",
  "oldest_message_age",
  "oldest_visible_message_age",
  "uptime",
]);

export const camel = (name: string): string => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
export const snake = (name: string): string => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/** What a case gives, with its names made its own, its references resolved, and its long texts and lists written out. */
export function expand(
  value: unknown,
  rename: ReadonlyMap<string, string>,
  saved: ReadonlyMap<string, unknown>,
): unknown {
  if (typeof value === "string") {
    const renamed = rename.get(value);
    if (renamed !== undefined) return renamed;
    const [, name, path] = /^\$(\w+)((?:\.\w+)*)$/.exec(value) ?? [];
    if (name === undefined || value === "$any" || value === "$absent") return value;
    const found = (path ?? "")
      .split(".")
      .slice(1)
      .reduce<unknown>((inner, key) => (inner as Plain | undefined)?.[key], saved.get(name));
    if (found === undefined && !(path === "" && saved.has(name))) throw new Error(`nothing was saved as ${value}`);
    return found;
  }
  if (Array.isArray(value)) return value.map((item) => expand(item, rename, saved));
  if (!isMap(value)) return value;
  const [[key, inner] = ["", undefined], ...others] = Object.entries(value);
  if (others.length === 0 && (key === "$text" || key === "$list")) {
    const [item, count] = inner as [unknown, number];
    return key === "$text"
      ? String(item).repeat(count)
      : Array.from({ length: count }, () => expand(item, rename, saved));
  }
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, expand(item, rename, saved)]));
}

/** Arguments of a case as the client takes them: camel case, milliseconds, dates. */
export function toClient(value: unknown, key = ""): unknown {
  if (BODIES.has(key)) return value;
  if (typeof value === "number" && SPANS.has(key)) return value * 1000;
  if (typeof value === "number" && key.endsWith("_at")) return new Date(value * 1000);
  if (Array.isArray(value)) return value.map((item) => toClient(item));
  if (!isMap(value) || shown.has(value)) return value;
  if (typeof value.in_seconds === "number") return new Date(Date.now() + value.in_seconds * 1000);
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [camel(name), toClient(item, name)]));
}

function isMessage(value: unknown): value is Message {
  return value instanceof Message;
}

/** The messages behind what cases see of them. */
const shown = new WeakMap<object, Message>();

export function messageOf(view: unknown): Message {
  const message = shown.get(view as object);
  if (!message) throw new Error("this is no message that was read");
  return message;
}

/** What the client gives as cases see it: snake case, seconds, numbers for ids. */
export function fromClient(value: unknown, json: (value: unknown) => string | undefined, key = ""): unknown {
  const inner = (item: unknown, name = "") => fromClient(item, json, name);
  if (value instanceof Date) return value.getTime() / 1000;
  if (isMessage(value)) {
    const { queue, msgId, readCt, enqueuedAt, lastReadAt, vt, message, messageText, headers, headersText, receipt } =
      value;
    const times = { enqueued_at: inner(enqueuedAt), last_read_at: inner(lastReadAt), vt: inner(vt) };
    const texts = { message_text: messageText, message_json: json(message), headers, headers_text: headersText };
    const view = { queue, msg_id: Number(msgId), read_ct: readCt, ...times, message, ...texts, receipt };
    shown.set(view, value);
    return view;
  }
  if (value instanceof PgmqError) {
    const { code, reason, field, metadata, requestId, retryDelay, outcomeUnknown } = value;
    const delay = retryDelay === undefined ? undefined : retryDelay / 1000;
    return {
      code,
      reason,
      field,
      metadata,
      request_id: requestId,
      retry_delay: delay,
      outcome_unknown: outcomeUnknown,
    };
  }
  if (typeof value === "number" && SPANS.has(key)) return value / 1000;
  if (typeof value === "string" && (key === "msg_id" || key === "id")) return Number(value);
  if (Array.isArray(value)) return value.map((item) => inner(item));
  if (!isMap(value) || BODIES.has(key) || key === "metadata" || shown.has(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [snake(name), inner(item, snake(name))]));
}

const isAbsent = (value: unknown): boolean =>
  value === undefined ||
  value === null ||
  value === "" ||
  (Array.isArray(value) && value.length === 0) ||
  (isMap(value) && Object.keys(value).length === 0);

const isNumeric = (value: unknown): boolean =>
  typeof value === "number" || typeof value === "bigint" || value instanceof LosslessNumber;

/** The value of a number as text: all its digits but the zeros around them, and the power of ten that they count. */
function decimal(value: unknown): string {
  const parts = /^(-?)(\d*)\.?(\d*)(?:e([+-]?\d+))?$/i.exec(String(value));
  if (!parts) return String(value);
  const [, sign = "", whole = "", fraction = "", exponent = "0"] = parts;
  const digits = (whole + fraction).replace(/^0+/, "");
  const significant = digits.replace(/0+$/, "");
  const power = Number(exponent) - fraction.length + digits.length - significant.length;
  return significant === "" ? "0" : `${sign}${significant}e${power}`;
}

/** A number of a case: one that `number` would round keeps its text. */
export function exactly(text: string): number | LosslessNumber {
  const value = Number(text);
  return !/^[-\d.e+]+$/i.test(text) || decimal(value) === decimal(text) ? value : new LosslessNumber(text);
}

const MATCHERS: Record<string, (actual: unknown, argument: never) => boolean> = {
  $at_least: (actual, argument: number) => isNumeric(actual) && Number(actual) >= argument,
  $at_most: (actual, argument: number) => isNumeric(actual) && Number(actual) <= argument,
  $in_seconds: (actual, [from, to]: [number, number]) => {
    const ahead = Number(actual) - Date.now() / 1000;
    return typeof actual === "number" && ahead >= from && ahead <= to;
  },
  $unordered: (actual, argument: unknown[]) => Array.isArray(actual) && sameInAnyOrder(actual, argument),
  $length: (actual, argument: number) =>
    (Array.isArray(actual) ? actual.length : typeof actual === "string" ? Array.from(actual).length : -1) === argument,
  $contains: (actual, argument: unknown) =>
    typeof actual === "string"
      ? actual.includes(String(argument))
      : Array.isArray(actual) && actual.some((item) => matches(item, argument)),
  $not: (actual, argument: unknown) => !matches(actual, argument),
};

/** Whether what came is what a case expects. */
export function matches(actual: unknown, expected: unknown): boolean {
  if (expected === "$any") return !isAbsent(actual);
  if (expected === "$absent") return isAbsent(actual);
  if (isNumeric(expected) && isNumeric(actual)) return decimal(actual) === decimal(expected);
  if (Array.isArray(expected)) {
    return (
      Array.isArray(actual) &&
      actual.length === expected.length &&
      expected.every((item, index) => matches(actual[index], item))
    );
  }
  if (!isMap(expected)) return isDeepStrictEqual(actual ?? null, expected);
  const [[key, argument] = ["", undefined], ...others] = Object.entries(expected);
  if (others.length === 0 && key.startsWith("$")) {
    const matcher = MATCHERS[key];
    if (!matcher) throw new Error(`there is no matcher ${key}`);
    return matcher(actual, argument as never);
  }
  return (
    typeof actual === "object" &&
    actual !== null &&
    Object.entries(expected).every(([name, item]) => matches((actual as Plain)[name], item))
  );
}

function sameInAnyOrder(actual: unknown[], expected: unknown[]): boolean {
  if (actual.length !== expected.length) return false;
  const left = [...actual];
  return expected.every((item) => {
    const index = left.findIndex((candidate) => matches(candidate, item));
    if (index >= 0) left.splice(index, 1);
    return index >= 0;
  });
}
