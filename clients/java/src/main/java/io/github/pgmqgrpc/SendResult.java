package io.github.pgmqgrpc;

/**
 * What became of a message that was sent.
 *
 * @param msgId the id that the message has in its queue
 * @param deduplicated whether an earlier message with the same deduplication id is meant, so that none was stored
 */
public record SendResult(long msgId, boolean deduplicated) {}
