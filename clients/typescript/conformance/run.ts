/** Runs the cases that all clients pass against the server at PGMQ_GRPC_TARGET. */
import { randomBytes } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { inspect } from "node:util";
import { type Client, connect, losslessJson, PgmqError } from "pgmq-grpc";
import { parse, type ScalarTag, type Tags } from "yaml";
import { checkArguments } from "./arguments.js";
import { exactly, expand, fromClient, isMap, matches, type Plain, toClient } from "./values.js";
import { archived, type Surroundings, WORDS } from "./words.js";

interface Step {
  do: string;
  with?: Plain;
  expect?: unknown;
  error?: Plain;
  save?: string;
  client?: string;
  deadline?: number;
}

interface Case {
  name: string;
  queues?: string[] | Record<string, Plain>;
  names?: string[];
  steps: Step[];
}

const CASE_LIMIT_MS = 120_000;
const FLOAT = "tag:yaml.org,2002:float";
const CASE_KEYS = new Set(["name", "queues", "names", "steps"]);
const STEP_KEYS = new Set(["do", "with", "expect", "error", "save", "client", "deadline"]);

const directory = process.env.CONFORMANCE_CASES ?? process.argv[2] ?? "";
const only = process.env.CONFORMANCE_ONLY ?? "";
const client = connect();
const lines: string[] = [];
let failed = 0;

for (const file of readdirSync(directory)
  .filter((name) => name.endsWith(".yaml"))
  .sort()) {
  for (const one of read(join(directory, file))) {
    if (!one.name.includes(only)) continue;
    const failure = await run(one);
    if (failure !== undefined) {
      failed++;
      console.log(`FAILED ${file}: ${one.name}: ${failure}`);
    }
    lines.push(`${failure === undefined ? "pass" : "fail"}\t${one.name}\n`);
  }
}
await client.close();
if (process.env.CONFORMANCE_RESULTS) writeFileSync(process.env.CONFORMANCE_RESULTS, lines.join(""));
console.log(`${lines.length - failed} passed, ${failed} failed`);
process.exit(failed === 0 && lines.length > 0 ? 0 : 1);

/** The cases of a file, with numbers that keep their digits. */
function read(path: string): Case[] {
  const safe = (_: unknown, value: unknown) =>
    typeof value === "bigint" && Number.isSafeInteger(Number(value)) ? Number(value) : value;
  const customTags = (tags: Tags): Tags =>
    tags.map((tag) => (typeof tag === "object" && tag.tag === FLOAT ? exact(tag as ScalarTag) : tag));
  const options = { maxAliasCount: -1, intAsBigInt: true, customTags };
  return parse(readFileSync(path, "utf8"), safe, options) as Case[];
}

/** Reads numbers with a point or a power of ten, without rounding them. `.nan` and its like are no numbers of JSON. */
function exact(tag: ScalarTag): ScalarTag {
  return { ...tag, resolve: (text, ...others) => (/\d/.test(text) ? exactly(text) : tag.resolve(text, ...others)) };
}

/** Runs one case with names of its own. Gives what is wrong, if anything is. */
async function run(one: Case): Promise<string | undefined> {
  const prefix = `t${randomBytes(4).toString("hex")}_`;
  const queues = Object.entries(
    Array.isArray(one.queues) ? Object.fromEntries(one.queues.map((name) => [name, {}])) : (one.queues ?? {}),
  );
  const names = [...queues.map(([name]) => name), ...(one.names ?? [])];
  const rename = new Map(names.map((name) => [name, prefix + name]));
  const around: Surroundings = { client, cleanups: [] };
  const limit = new AbortController();
  try {
    unknownKey(one, CASE_KEYS);
    for (const [name, options] of queues) {
      const made = toClient(expand(options, rename, new Map())) as Plain;
      await client.createQueue(prefix + name, made);
    }
    const late = sleep(CASE_LIMIT_MS, "it took more than two minutes", { signal: limit.signal }).catch(() => undefined);
    return await Promise.race([steps(one.steps, rename, around), late]);
  } catch (error) {
    return `around it: ${inspect(error)}`;
  } finally {
    limit.abort();
    await Promise.allSettled(around.cleanups.map((cleanup) => cleanup()));
    for (const name of names) await client.dropQueue(prefix + name).catch(() => undefined);
  }
}

async function steps(list: Step[], rename: Map<string, string>, around: Surroundings): Promise<string | undefined> {
  const saved = new Map<string, unknown>();
  for (const [index, step] of list.entries()) {
    const what = `step ${index + 1} (${step.do})`;
    try {
      unknownKey(step, STEP_KEYS);
      const failure = await perform(step, rename, saved, around);
      if (failure !== undefined) return `${what}: ${failure}`;
    } catch (error) {
      return `${what}: ${inspect(error)}`;
    }
  }
  return undefined;
}

async function perform(
  step: Step,
  rename: Map<string, string>,
  saved: Map<string, unknown>,
  around: Surroundings,
): Promise<string | undefined> {
  const word = WORDS[step.do];
  if (!word) throw new Error("there is no such word");
  const written = expand(step.with ?? {}, rename, saved) as Plain;
  checkArguments(step.do, written);
  const given = toClient(written) as Plain;
  if (step.deadline !== undefined) given.timeoutMs = step.deadline * 1000;
  const asked =
    step.client === undefined ? around : { ...around, client: expand(step.client, rename, saved) as Client };
  let result: unknown;
  try {
    result = seen(await word(given, asked));
  } catch (error) {
    if (!(error instanceof PgmqError) || !step.error) throw error;
    return difference(seen(error), expand(step.error, rename, saved));
  }
  if (step.error) return `expected the error ${show(step.error)}, got ${show(result)}`;
  if (step.save !== undefined) saved.set(step.save, result);
  return "expect" in step ? difference(result, expand(step.expect, rename, saved)) : undefined;
}

function seen(result: unknown): unknown {
  const plain = fromClient(result, (value) => losslessJson.stringify(value));
  return Array.isArray(plain) ? plain.map(archived) : plain;
}

function difference(actual: unknown, expected: unknown): string | undefined {
  return matches(actual, expected) ? undefined : `expected ${show(expected)}, got ${show(actual)}`;
}

function unknownKey(map: object, known: ReadonlySet<string>): void {
  const key = Object.keys(map).find((name) => !known.has(name));
  if (key !== undefined) throw new Error(`there is no key ${key}`);
}

function show(value: unknown): string {
  return inspect(isMap(value) || Array.isArray(value) ? value : { value }, {
    depth: 6,
    breakLength: Infinity,
    maxStringLength: 100,
    maxArrayLength: 10,
  });
}
