package io.github.pgmqgrpc;

import java.util.Arrays;
import java.util.Collection;
import java.util.List;
import java.util.stream.LongStream;

/**
 * Which messages are settled: by receipts, only as far as the caller still holds them; or by ids, whoever holds them.
 * At most 1,000.
 */
public final class Items {
    final List<Long> ids;
    final List<String> receipts;

    private Items(List<Long> ids, List<String> receipts) {
        this.ids = ids;
        this.receipts = receipts;
    }

    int count() {
        return ids.size() + receipts.size();
    }

    /**
     * Messages that were read, by their receipts.
     *
     * @param messages the messages
     * @return the items
     */
    public static Items of(Collection<Message> messages) {
        return receipts(messages.stream().map(Message::receipt).toList());
    }

    /**
     * Messages that were read, by their receipts.
     *
     * @param messages the messages
     * @return the items
     */
    public static Items of(Message... messages) {
        return of(Arrays.asList(messages));
    }

    /**
     * Messages by their receipts.
     *
     * @param receipts the receipts
     * @return the items
     */
    public static Items receipts(Collection<String> receipts) {
        return new Items(List.of(), List.copyOf(receipts));
    }

    /**
     * Messages by their ids.
     *
     * @param ids the ids
     * @return the items
     */
    public static Items ids(long... ids) {
        return new Items(LongStream.of(ids).boxed().toList(), List.of());
    }
}
