package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.TransactResponse;
import java.util.List;
import java.util.stream.Stream;

/**
 * What a transaction has done.
 *
 * @param results one for each operation, in their order
 * @param deduplicated whether an earlier transaction with the same deduplication id is meant, so that nothing was done
 */
public record TransactResult(List<Operation> results, boolean deduplicated) {
    /**
     * What one operation has done. What does not belong to its kind is empty.
     *
     * @param sent one for each message that was sent
     * @param topic what became of a topic's message
     * @param settled one for each message that was settled
     */
    public record Operation(List<SendResult> sent, TopicResult topic, List<ItemResult> settled) {}

    static TransactResult of(TransactResponse response) {
        return new TransactResult(
                response.getResultsList().stream()
                        .map(TransactResult::operation)
                        .toList(),
                response.getDeduplicated());
    }

    private static Operation operation(io.github.pgmqgrpc.v1.TransactResult result) {
        // Only one of these is set, and the others have empty lists.
        Stream<SendResult> batch = result.getSendBatch().getResultsList().stream()
                .map(sent -> new SendResult(sent.getMsgId(), sent.getDeduplicated()));
        Stream<SendResult> single = result.hasSend()
                ? Stream.of(new SendResult(
                        result.getSend().getMsgId(), result.getSend().getDeduplicated()))
                : Stream.empty();
        Stream<io.github.pgmqgrpc.v1.ItemResult> settled = Stream.of(
                        result.getDelete().getResultsList(),
                        result.getArchive().getResultsList(),
                        result.getRelease().getResultsList(),
                        result.getDeadLetter().getResultsList(),
                        result.getSetVisibilityTimeout().getResultsList())
                .flatMap(List::stream);
        return new Operation(
                Stream.concat(single, batch).toList(),
                TopicResult.of(result.getSendTopic()),
                settled.map(ItemResult::of).toList());
    }
}
