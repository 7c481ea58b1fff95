package io.github.pgmqgrpc;

import java.time.Instant;

/**
 * A message in an archive.
 *
 * @param message the message, without a receipt
 * @param archivedAt when it was archived
 */
public record ArchivedMessage(Message message, Instant archivedAt) {}
