/** A server with a database of its own, which can be killed, and whose tables can be reached by SQL. */
import { type ChildProcess, spawn } from "node:child_process";
import { chmodSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";
import { connect } from "pgmq-grpc";

/** The program of the server, if it is known. */
export const PROGRAM = process.env.PGMQ_GRPC_SERVER;

export class Server {
  readonly #place = mkdtempSync(join(tmpdir(), "pgmq-"));
  #process: ChildProcess | undefined;

  private constructor(
    readonly address: string,
    private readonly postgresPort: number,
  ) {
    // The embedded Postgres of root runs as another user, who has to reach the directory.
    chmodSync(this.#place, 0o755);
  }

  static async start(): Promise<Server> {
    const server = new Server(`127.0.0.1:${await freePort()}`, await freePort());
    await server.#run();
    return server;
  }

  /** Connections to its database. */
  sql(max: number): pg.Pool {
    const password = readFileSync(join(this.#place, "password"), "utf8").trim();
    const login = { user: "pgmq", database: "pgmq", password };
    const pool = new pg.Pool({ host: "127.0.0.1", port: this.postgresPort, ...login, max });
    // Connections that nobody uses end with the database, too.
    return pool.on("error", () => undefined);
  }

  /** Kills the server, and starts another one with the same data. */
  async killAndStart(): Promise<void> {
    await this.#end("SIGKILL");
    await this.#run();
  }

  async stop(): Promise<void> {
    await this.#end("SIGTERM");
    rmSync(this.#place, { recursive: true, force: true });
  }

  async #run(): Promise<void> {
    if (PROGRAM === undefined) throw new Error("PGMQ_GRPC_SERVER names no program");
    const ports = ["--listen", this.address, "--postgres-port", String(this.postgresPort)];
    this.#process = spawn(PROGRAM, [...ports, "--data-dir", this.#place, "--log", "error"], { stdio: "inherit" });
    await using client = connect(this.address);
    const end = Date.now() + 60_000;
    while (!(await client.getServerInfo({ timeoutMs: 1000 }).catch(() => undefined))) {
      if (Date.now() > end) throw new Error("the server does not answer");
      await sleep(50);
    }
  }

  async #end(signal: "SIGTERM" | "SIGKILL"): Promise<void> {
    const ended = new Promise((resolve) => this.#process?.once("exit", resolve));
    this.#process?.kill(signal);
    await ended;
  }
}

async function freePort(): Promise<number> {
  const one = createServer();
  await new Promise<void>((resolve) => void one.listen(0, "127.0.0.1", resolve));
  const { port } = one.address() as AddressInfo;
  await new Promise((resolve) => void one.close(resolve));
  return port;
}
