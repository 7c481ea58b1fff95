/** Connections: what a target means, and how HTTP/2 is set. */
import { readFileSync } from "node:fs";
import type { ClientHttp2Session, ClientHttp2Stream, SecureClientSessionOptions } from "node:http2";
import { connect as connectSocket } from "node:net";
import { Code, ConnectError, type Interceptor, type Transport } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { NotSentError, PgmqError } from "./errors.js";

/** TLS with certificates of your own; all are PEM texts, or paths of files. */
export interface TlsOptions {
  /** The authority that has signed the server's certificate, in place of the system's. */
  ca?: string | Buffer;
  /** The client's certificate, with {@link key}. */
  cert?: string | Buffer;
  key?: string | Buffer;
  /** The name in the server's certificate, where it is not the one of the target. */
  serverName?: string;
}

export type MetadataSource =
  | Readonly<Record<string, string>>
  | (() => Readonly<Record<string, string>> | Promise<Readonly<Record<string, string>>>);

export interface TransportOptions {
  tls?: boolean | TlsOptions | undefined;
  metadata?: MetadataSource | undefined;
  clientName?: string | undefined;
  interceptors?: readonly Interceptor[] | undefined;
}

/** What one stream, and all of a connection, may have on the way to us. */
const STREAM_WINDOW = 4 << 20;
const CONNECTION_WINDOW = 16 << 20;

/** One connection, made when it is needed and again when it is lost. */
export class Sessions extends Http2SessionManager {
  readonly #widened = new WeakSet<ClientHttp2Session>();

  override async request(...call: Parameters<Http2SessionManager["request"]>): Promise<ClientHttp2Stream> {
    const stream = await super.request(...call).catch((reason: unknown) => {
      const error = ConnectError.from(reason);
      throw new NotSentError(error.rawMessage, Code.Unavailable, undefined, undefined, error.cause ?? reason);
    });
    const session = stream.session as ClientHttp2Session | undefined;
    if (session && !this.#widened.has(session)) {
      this.#widened.add(session);
      session.setLocalWindowSize(CONNECTION_WINDOW);
    }
    return stream;
  }
}

/** The way to `target`, over which nothing goes once it is `closed`. */
export function open(
  target: string,
  options: TransportOptions,
  closed: () => boolean,
): { transport: Transport; sessions: Sessions } {
  const { address, socket } = parseTarget(target);
  const tls = options.tls === true ? {} : options.tls || undefined;
  const baseUrl = `${tls ? "https" : "http"}://${address}`;
  const nodeOptions: SecureClientSessionOptions = {
    settings: { initialWindowSize: STREAM_WINDOW, enablePush: false },
    // In MB. Many streams and large messages are no attack here.
    maxSessionMemory: 1024,
  };
  if (socket) nodeOptions.createConnection = () => connectSocket(socket);
  if (tls?.ca) nodeOptions.ca = pem(tls.ca);
  if (tls?.cert) nodeOptions.cert = pem(tls.cert);
  if (tls?.key) nodeOptions.key = pem(tls.key);
  if (tls?.serverName) nodeOptions.servername = tls.serverName;
  const sessions = new Sessions(baseUrl, { pingIntervalMs: 20_000, pingTimeoutMs: 10_000 }, nodeOptions);
  const transport = createGrpcTransport({
    baseUrl,
    sessionManager: sessions,
    interceptors: [refuse(closed), ...(options.interceptors ?? []), identify(options)],
    acceptCompression: [],
  });
  return { transport, sessions };
}

/** `host:port`, `dns:///name:port`, or `unix:/path`. */
function parseTarget(target: string): { address: string; socket?: string } {
  const unix = /^unix:(?:\/\/(?=\/))?(.+)$/.exec(target);
  if (unix) return { address: "localhost", socket: unix[1] as string };
  const address = target.replace(/^dns:\/\/\//, "");
  if (!/^([\w.-]+|\[[\da-fA-F:.]+\]):\d+$/.test(address)) {
    throw new TypeError(`a target is host:port, dns:///name:port or unix:/path, not ${JSON.stringify(target)}`);
  }
  return { address };
}

function pem(source: string | Buffer): string | Buffer {
  return typeof source === "string" && !source.includes("-----BEGIN") ? readFileSync(source) : source;
}

/** Says in each call who calls, and shows the credentials. */
function identify({ clientName, metadata }: TransportOptions): Interceptor {
  if (clientName !== undefined) checkEntry("pgmq-client", clientName);
  const fixed = Object.entries(typeof metadata === "object" ? metadata : {});
  for (const [key, value] of fixed) checkEntry(key, value);
  return (next) => async (request) => {
    if (clientName !== undefined) request.header.set("pgmq-client", clientName);
    const entries = typeof metadata === "function" ? await asked(metadata) : fixed;
    for (const [key, value] of entries) request.header.set(key, value);
    return next(request);
  };
}

/** What a function gives as metadata. Where it fails, the call does not leave, and may be tried again. */
async function asked(metadata: () => unknown): Promise<[string, string][]> {
  let entries: [string, string][];
  try {
    entries = Object.entries(((await metadata()) ?? {}) as Record<string, string>);
  } catch (thrown) {
    throw new NotSentError(`there is no metadata: ${String(thrown)}`, Code.Unavailable, undefined, undefined, thrown);
  }
  for (const [key, value] of entries) checkEntry(key, value);
  return entries;
}

/** Fails where gRPC cannot carry an entry of metadata. */
function checkEntry(key: string, value: string): void {
  if (/^[\da-z_.-]+$/i.test(key) && typeof value === "string" && /^[ -~]*$/.test(value)) return;
  throw new PgmqError(
    "INVALID_ARGUMENT",
    `metadata is printable ASCII, and the value of ${JSON.stringify(key)} is not`,
    {
      outcomeUnknown: false,
    },
  );
}

function refuse(closed: () => boolean): Interceptor {
  return (next) => (request) => {
    if (closed()) throw new NotSentError("the client is closed", Code.Canceled);
    return next(request);
  };
}
