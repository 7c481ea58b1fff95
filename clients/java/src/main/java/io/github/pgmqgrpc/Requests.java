package io.github.pgmqgrpc;

import io.github.pgmqgrpc.v1.ArchiveRequest;
import io.github.pgmqgrpc.v1.DeadLetterRequest;
import io.github.pgmqgrpc.v1.DeleteRequest;
import io.github.pgmqgrpc.v1.OutgoingMessage;
import io.github.pgmqgrpc.v1.ReleaseRequest;
import io.github.pgmqgrpc.v1.SendBatchRequest;
import io.github.pgmqgrpc.v1.SendRequest;
import io.github.pgmqgrpc.v1.SendTopicRequest;
import io.github.pgmqgrpc.v1.SetVisibilityTimeoutRequest;
import java.time.Duration;
import java.time.Instant;
import java.util.List;

/** Requests that are made by themselves and inside of transactions. */
final class Requests {
    private Requests() {}

    static SendRequest send(String queue, OutgoingMessage message) {
        SendRequest.Builder request = SendRequest.newBuilder()
                .setQueue(queue)
                .setMessage(message.getMessage())
                .setHeaders(message.getHeaders())
                .setGroup(message.getGroup())
                .setDeduplicationId(message.getDeduplicationId());
        if (message.hasDelay()) {
            request.setDelay(message.getDelay());
        }
        if (message.hasVisibleAt()) {
            request.setVisibleAt(message.getVisibleAt());
        }
        return request.build();
    }

    static SendTopicRequest sendTopic(String routingKey, OutgoingMessage message, boolean requireMatch) {
        SendTopicRequest.Builder request = SendTopicRequest.newBuilder()
                .setRoutingKey(routingKey)
                .setMessage(message.getMessage())
                .setHeaders(message.getHeaders())
                .setGroup(message.getGroup())
                .setDeduplicationId(message.getDeduplicationId())
                .setRequireMatch(requireMatch);
        if (message.hasDelay()) {
            request.setDelay(message.getDelay());
        }
        if (message.hasVisibleAt()) {
            request.setVisibleAt(message.getVisibleAt());
        }
        return request.build();
    }

    static SendBatchRequest sendBatch(String queue, List<OutgoingMessage> messages) {
        return SendBatchRequest.newBuilder()
                .setQueue(queue)
                .addAllMessages(messages)
                .build();
    }

    static List<OutgoingMessage> wire(List<?> messages, JsonCodec json) {
        return messages.stream()
                .map(message -> io.github.pgmqgrpc.OutgoingMessage.from(message).toWire(json))
                .toList();
    }

    static DeleteRequest delete(String queue, Items items) {
        return DeleteRequest.newBuilder()
                .setQueue(queue)
                .addAllMsgIds(items.ids)
                .addAllReceipts(items.receipts)
                .build();
    }

    static ArchiveRequest archive(String queue, Items items) {
        return ArchiveRequest.newBuilder()
                .setQueue(queue)
                .addAllMsgIds(items.ids)
                .addAllReceipts(items.receipts)
                .build();
    }

    static ReleaseRequest release(String queue, Items items, Duration delay) {
        ReleaseRequest.Builder request =
                ReleaseRequest.newBuilder().setQueue(queue).addAllReceipts(receiptsOf(items));
        if (delay != null) {
            request.setDelay(Convert.duration(delay));
        }
        return request.build();
    }

    static DeadLetterRequest deadLetter(String queue, Items items, String reason) {
        return DeadLetterRequest.newBuilder()
                .setQueue(queue)
                .addAllReceipts(receiptsOf(items))
                .setReason(reason)
                .build();
    }

    static SetVisibilityTimeoutRequest setVisibilityTimeout(String queue, Items items, Duration timeout) {
        return visibility(queue, items)
                .setVisibilityTimeout(Convert.duration(timeout))
                .build();
    }

    static SetVisibilityTimeoutRequest setVisibilityTimeout(String queue, Items items, Instant moment) {
        return visibility(queue, items).setVisibleAt(Convert.timestamp(moment)).build();
    }

    private static SetVisibilityTimeoutRequest.Builder visibility(String queue, Items items) {
        return SetVisibilityTimeoutRequest.newBuilder()
                .setQueue(queue)
                .addAllMsgIds(items.ids)
                .addAllReceipts(items.receipts);
    }

    /** Only who holds a message can release it, so there is no such call by ids. */
    private static List<String> receiptsOf(Items items) {
        if (!items.ids.isEmpty()) {
            throw new IllegalArgumentException("messages are released and moved by receipts, not by ids");
        }
        return items.receipts;
    }
}
