/**
 * The contract's messages as plain values: spans are numbers of milliseconds, moments are `Date`, enumerations are their
 * words, counts are `number`. Ids stay strings of digits.
 */
import {
  create,
  type DescEnum,
  type DescField,
  type DescMessage,
  type Message,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import {
  type Duration,
  DurationSchema,
  type Timestamp,
  timestampDate,
  timestampFromDate,
  TimestampSchema,
} from "@bufbuild/protobuf/wkt";
import type { Plain } from "./types.js";

/** What the seconds of a span may be on the wire. The server takes far less, and says so. */
const LONGEST_MS = 2 ** 63 * 1000;

/** A span of time in milliseconds, of which parts are kept to the nanosecond. */
export function durationOf(milliseconds: number): Duration {
  if (!(Math.abs(milliseconds) < LONGEST_MS)) {
    throw new RangeError(`not a span of time in milliseconds: ${milliseconds}`);
  }
  const seconds = Math.trunc(milliseconds / 1000);
  const nanos = Math.round((milliseconds - seconds * 1000) * 1e6);
  return create(DurationSchema, { seconds: BigInt(seconds), nanos });
}

export function milliseconds(duration: Duration): number {
  return Number(duration.seconds) * 1000 + duration.nanos / 1e6;
}

/** Makes a request of plain values. Keys that are no fields of it are left out, and so is what is undefined or null. */
export function toWire<D extends DescMessage>(schema: D, plain: object): MessageShape<D> {
  const init: Record<string, unknown> = {};
  for (const field of schema.fields) {
    const value = (plain as Record<string, unknown>)[field.localName];
    if (value === undefined || value === null) continue;
    const wire =
      field.fieldKind === "list"
        ? [...(value as Iterable<unknown>)].map((item) => fieldToWire(field, item))
        : fieldToWire(field, value);
    if (field.oneof) {
      const other = init[field.oneof.localName] as { case: string } | undefined;
      if (other) throw new TypeError(`${other.case} and ${field.localName} exclude each other`);
      init[field.oneof.localName] = { case: field.localName, value: wire };
    } else init[field.localName] = wire;
  }
  return create(schema, init as MessageInitShape<D>);
}

function fieldToWire(field: DescField, value: unknown): unknown {
  if (field.enum) return enumNumber(field.enum, value);
  if (field.message) {
    if (field.message.typeName === DurationSchema.typeName) return durationOf(value as number);
    if (field.message.typeName === TimestampSchema.typeName) return timestampFromDate(value as Date);
    return toWire(field.message, value as object);
  }
  return isId(field) ? String(value) : value;
}

/** Ids are strings on this side of the wire, and taken as numbers too. */
function isId(field: DescField): boolean {
  return "longAsString" in field && field.longAsString;
}

/** The number of an enumeration's word. A number, for values that are newer than this client, is passed on. */
function enumNumber(schema: DescEnum, word: unknown): number {
  if (typeof word === "number") return word;
  const value = schema.values.find((candidate) => candidate.localName === word);
  if (!value) throw new TypeError(`${schema.name} has no value ${String(word)}`);
  return value.number;
}

/** The word of an enumeration's number; of one that is newer than this client, the number as text. */
export function enumWord(schema: DescEnum, number: number): string {
  return schema.value[number]?.localName ?? String(number);
}

/** The plain values of a reply. Fields that are unset are left out. */
export function fromWire<D extends DescMessage>(schema: D, message: MessageShape<D>): Plain<MessageShape<D>> {
  const plain: Record<string, unknown> = {};
  for (const field of schema.fields) {
    const value = valueOf(message, field);
    if (value === undefined || (field.fieldKind === "enum" && value === 0)) continue;
    plain[field.localName] = Array.isArray(value)
      ? value.map((item) => fieldFromWire(field, item))
      : fieldFromWire(field, value);
  }
  return plain as Plain<MessageShape<D>>;
}

function valueOf(message: Message, field: DescField): unknown {
  const fields = message as unknown as Record<string, unknown>;
  if (!field.oneof) return fields[field.localName];
  const choice = fields[field.oneof.localName] as { case?: string; value?: unknown };
  return choice.case === field.localName ? choice.value : undefined;
}

function fieldFromWire(field: DescField, value: unknown): unknown {
  if (field.fieldKind === "map") return value;
  if (field.enum) return enumWord(field.enum, value as number);
  if (field.message) {
    if (field.message.typeName === DurationSchema.typeName) return milliseconds(value as Duration);
    if (field.message.typeName === TimestampSchema.typeName) return timestampDate(value as Timestamp);
    return fromWire(field.message, value as Message);
  }
  return typeof value === "bigint" ? Number(value) : value;
}
