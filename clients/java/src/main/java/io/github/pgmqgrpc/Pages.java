package io.github.pgmqgrpc;

import java.util.ArrayDeque;
import java.util.Iterator;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.function.Function;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;

/**
 * A list that the server gives in pages. Each page is asked for when it is needed; going through it again asks again. The
 * pages together are not a snapshot.
 *
 * @param <T> what the list holds
 */
public final class Pages<T> implements Iterable<T> {
    private final Function<String, Page<T>> ask;

    Pages(Function<String, Page<T>> ask) {
        this.ask = ask;
    }

    /**
     * All elements, one after the other.
     *
     * @return an iterator, which throws {@link PgmqException} where a page cannot be had
     */
    @Override
    public Iterator<T> iterator() {
        return new Iterator<>() {
            private final ArrayDeque<T> items = new ArrayDeque<>();
            private String token = "";
            private boolean last;

            @Override
            public boolean hasNext() {
                while (items.isEmpty() && !last) {
                    Page<T> page = ask.apply(token);
                    items.addAll(page.items);
                    token = page.nextToken;
                    last = token.isEmpty();
                }
                return !items.isEmpty();
            }

            @Override
            public T next() {
                if (!hasNext()) {
                    throw new NoSuchElementException();
                }
                return items.poll();
            }
        };
    }

    /**
     * All elements as a stream.
     *
     * @return the stream
     */
    public Stream<T> stream() {
        return StreamSupport.stream(spliterator(), false);
    }

    /**
     * All elements at once.
     *
     * @return the list
     */
    public List<T> toList() {
        return stream().toList();
    }

    /** One page. */
    record Page<T>(List<T> items, String nextToken) {}
}
