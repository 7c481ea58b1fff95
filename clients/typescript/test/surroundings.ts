/** What tests need around them: queues of their own, connections that can be cut, and patience. */
import { randomBytes } from "node:crypto";
import { createServer, connect as connectSocket, type Server, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { after } from "node:test";
import { type Client, connect, type ConnectOptions, type CreateQueueOptions, type Queue } from "pgmq-grpc";

export const target = process.env.PGMQ_GRPC_TARGET ?? "127.0.0.1:50051";

/** A client that is closed when the tests of the file are over. */
export function client(options: ConnectOptions = {}, address = target): Client {
  const made = connect(address, options);
  after(() => made.close());
  return made;
}

/** A queue that nobody else has. */
export async function queue<T = unknown>(of: Client, options: CreateQueueOptions = {}): Promise<Queue<T>> {
  const made = of.queue<T>(`t_${randomBytes(8).toString("hex")}`);
  await made.create(options);
  after(async () => {
    const last = connect(target);
    await last.dropQueue(made.name).catch(() => undefined);
    await last.close();
  });
  return made;
}

export async function eventually(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  const end = Date.now() + 30_000;
  while (Date.now() < end) {
    if (await holds()) return;
    await sleep(20);
  }
  throw new Error(`it did not come to be that ${what}`);
}

/** A way to the server that can be cut, and closed for a while. */
export class Way {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  /** How many connections were made over it. */
  connections = 0;

  private constructor() {
    const [host, port] = target.split(":") as [string, string];
    this.#server = createServer((socket) => {
      this.connections++;
      const onward = connectSocket(Number(port), host);
      socket.pipe(onward).pipe(socket);
      for (const end of [socket, onward]) {
        this.#sockets.add(end);
        end.on("error", () => undefined);
        end.on("close", () => this.cutOff(socket, onward));
      }
    });
  }

  /** A way that begins at a free port, or at a path. */
  static async open(path?: string): Promise<Way> {
    const way = new Way();
    await new Promise<void>((resolve) => {
      if (path === undefined) way.#server.listen(0, "127.0.0.1", resolve);
      else way.#server.listen(path, resolve);
    });
    after(() => way.close());
    return way;
  }

  get address(): string {
    const address = this.#server.address();
    return typeof address === "string" ? `unix:${address}` : `127.0.0.1:${address?.port}`;
  }

  /** Breaks all connections. */
  cut(): void {
    this.cutOff(...this.#sockets);
  }

  /** Lets nothing more through the connections that are there. */
  hold(): void {
    for (const socket of this.#sockets) socket.unpipe();
  }

  /** Breaks all connections, and takes none until the answer is called. */
  async close(): Promise<() => Promise<void>> {
    const address = this.#server.address();
    const closed = new Promise((resolve) => void this.#server.close(resolve));
    this.cut();
    await closed;
    const port = typeof address === "object" && address ? address.port : 0;
    return () => new Promise((resolve) => this.#server.listen(port, "127.0.0.1", resolve));
  }

  private cutOff(...sockets: Socket[]): void {
    for (const socket of sockets) {
      socket.destroy();
      this.#sockets.delete(socket);
    }
  }
}
