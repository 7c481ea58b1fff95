package io.github.pgmqgrpc;

import java.util.List;

/**
 * The copy of a topic's message in one queue.
 *
 * @param queue the queue that has the copy
 * @param msgId the id of the copy there
 * @param messageIndex which message of the batch this is a copy of, from 0
 * @param deduplicated whether an earlier copy with the same deduplication id is meant, so that none was stored
 */
public record TopicCopy(String queue, long msgId, int messageIndex, boolean deduplicated) {
    static List<TopicCopy> of(List<io.github.pgmqgrpc.v1.TopicCopy> copies) {
        return copies.stream()
                .map(copy ->
                        new TopicCopy(copy.getQueue(), copy.getMsgId(), copy.getMessageIndex(), copy.getDeduplicated()))
                .toList();
    }
}
