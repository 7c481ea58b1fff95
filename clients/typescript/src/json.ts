/** How bodies and headers become values and text again. */
import { LosslessNumber, parse, stringify } from "lossless-json";

export { LosslessNumber };

/** A JSON library. The global `JSON` is one, for those who want no number but `number`. */
export interface JsonCodec {
  parse(text: string): unknown;
  stringify(value: unknown): string | undefined;
}

/**
 * The library that is used unless another is given. What it reads loses no digits: a number that `number` writes just so
 * is a `number`, another whole number is a `bigint`, and anything else, such as 12.50, is a {@link LosslessNumber}, which
 * keeps its text and counts as the number that it is. It writes all three, and whatever `JSON.stringify` writes, but for
 * NaN and infinities, which JSON has not: it refuses them.
 */
export const losslessJson: JsonCodec = {
  parse(text) {
    return SUSPECT.test(text) ? parse(text, null, number) : (JSON.parse(text) as unknown);
  },
  stringify(value) {
    return stringify(value, null, undefined, [NO_NUMBERS]);
  },
};

/** Numbers that JSON has no digits for. */
const NO_NUMBERS = {
  test: (value: unknown) => typeof value === "number" && !Number.isFinite(value),
  stringify: (value: unknown): string => {
    throw new RangeError(`JSON has no ${String(value)}`);
  },
};

/** Digits that `number` may lose. Most texts have none, and need no second look at their numbers. */
const SUSPECT = /[\d.]{16}|\d[eE]|\.\d*0(?!\d)|\.0{6}|-0/;

function number(digits: string): number | bigint | LosslessNumber {
  const value = Number(digits);
  if (String(value) === digits) return Number.isInteger(value) && !Number.isSafeInteger(value) ? BigInt(digits) : value;
  return /^-?\d+$/.test(digits) ? BigInt(digits) : new LosslessNumber(digits);
}

/**
 * JSON text that is sent as it is, in place of a body or of headers: `queue.send(new JsonText('{"price": 1.10}'))`.
 * What comes back as text is in {@link Message.messageText}.
 */
export class JsonText {
  constructor(readonly text: string) {}

  /** A part of a value cannot be text: the library would write it as an object. */
  toJSON(): never {
    throw new TypeError("JsonText stands for a whole body or for all headers, not for a part of them");
  }
}

/** The text of a value; "" of undefined, which the server takes for none. */
export function textOf(value: unknown, codec: JsonCodec): string {
  if (value instanceof JsonText) return String(value.text);
  return codec.stringify(value) ?? "";
}
