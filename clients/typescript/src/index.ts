/**
 * The client of pgmq-grpc: the message queue in your Postgres, over gRPC.
 *
 * Spans of time are numbers of milliseconds, moments are `Date`, ids are strings of digits.
 *
 * @packageDocumentation
 */
export type { CallOptions, Logger } from "./calls.js";
export { Client, connect, type ConnectOptions, type RawStubs } from "./client.js";
export { Consumer, type ConsumeOptions } from "./consumer.js";
export { type ErrorReason, type GrpcCode, PgmqError } from "./errors.js";
export { type JsonCodec, JsonText, LosslessNumber, losslessJson } from "./json.js";
export { Message } from "./message.js";
export { Producer, type ProducerOptions } from "./producer.js";
export { type Moved, Queue } from "./queue.js";
export type { Targets } from "./settle.js";
export type { Operation, OperationResult, Settled } from "./transact.js";
export type { MetadataSource, TlsOptions } from "./transport.js";
export type * from "./types.js";
export { Watcher } from "./watcher.js";
export { Worker, type WorkOptions } from "./worker.js";
