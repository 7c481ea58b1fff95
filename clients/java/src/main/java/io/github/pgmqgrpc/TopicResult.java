package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.SendTopicResponse;
import java.util.List;

/**
 * What became of a topic's message.
 *
 * @param copies a copy for each matching queue; empty if no queue matches
 * @param deduplicated whether there are copies and all of them were stored by an earlier call
 */
public record TopicResult(List<TopicCopy> copies, boolean deduplicated) {
    static TopicResult of(SendTopicResponse response) {
        return new TopicResult(TopicCopy.of(response.getCopiesList()), response.getDeduplicated());
    }
}
