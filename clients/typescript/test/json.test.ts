import assert from "node:assert/strict";
import { test } from "node:test";
import { JsonText, losslessJson, LosslessNumber } from "pgmq-grpc";
import { client, queue } from "./surroundings.js";

test("numbers keep their digits, and ordinary ones are numbers", () => {
  const texts = [
    "0",
    "-1",
    "1.5",
    "1e400",
    "9007199254740991",
    "0.1",
    "9007199254740993",
    "12.50",
    "0.0000001",
    "-0.00",
  ];
  const kinds = ["number", "number", "number", "object", "number", "number", "bigint", "object", "object", "object"];

  assert.deepEqual(
    texts.map((text) => typeof losslessJson.parse(text)),
    kinds,
  );
  for (const text of texts) assert.equal(losslessJson.stringify(losslessJson.parse(text)), text);
  assert.equal(Number(losslessJson.parse("12.50")) * 2, 25);
});

test("digits inside of texts are left alone", () => {
  const value = { id: "12345678901234567890", price: "12.50", "1e5": [1, 2.5] };

  assert.deepEqual(losslessJson.parse(JSON.stringify(value)), value);
});

test("values come back from the queue as they were", async () => {
  const values = await queue(client());
  const body = { id: 12345678901234567890n, price: new LosslessNumber("12.50"), text: "größe 😀", none: null };
  await values.send(body, { headers: { n: 9007199254740993n } });
  await values.send(new JsonText('{"a": 1.10}'), { headers: new JsonText('{"b": 2.20}') });

  const [first, second] = await values.read({ maxMessages: 2 });

  assert.ok(first && second);
  assert.deepEqual(first.message, body);
  assert.deepEqual(first.headers, { n: 9007199254740993n });
  assert.equal(second.messageText, '{"a": 1.10}');
  assert.equal(second.headersText, '{"b": 2.20}');
});

test("another library can be plugged in", async () => {
  const plain = await queue<{ price: number }>(client({ json: JSON }));
  await plain.send(new JsonText('{"price": 12.50}'));

  const [message] = await plain.read();

  assert.equal(message?.message.price, 12.5);
});
