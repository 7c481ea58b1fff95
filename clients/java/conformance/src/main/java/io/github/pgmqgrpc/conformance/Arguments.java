package io.github.pgmqgrpc.conformance;

import java.time.Duration;
import java.time.Instant;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Consumer;

/** The arguments of a step, which knows those that nobody has asked for. */
final class Arguments {
    private final Map<String, Object> given;
    private final Set<String> unused;

    Arguments(Map<String, Object> given) {
        this.given = given;
        this.unused = new HashSet<>(given.keySet());
    }

    void checkAllUsed() {
        if (!unused.isEmpty()) {
            throw new Failure("unknown arguments " + unused);
        }
    }

    boolean has(String key) {
        return given.containsKey(key);
    }

    Object get(String key) {
        unused.remove(key);
        return given.get(key);
    }

    String text(String key) {
        return (String) get(key);
    }

    String text(String key, String absent) {
        return has(key) ? text(key) : absent;
    }

    int number(String key, int absent) {
        return has(key) ? ((Number) get(key)).intValue() : absent;
    }

    boolean flag(String key) {
        return Boolean.TRUE.equals(get(key));
    }

    Duration span(String key, Duration absent) {
        return has(key) ? Values.span(get(key)) : absent;
    }

    Instant moment(String key) {
        return Values.moment(get(key));
    }

    List<?> list(String key) {
        return Values.list(get(key));
    }

    <E extends Enum<E>> E word(String key, Class<E> type) {
        return Enum.valueOf(type, text(key));
    }

    /** Does something with an argument where it is given. */
    void with(String key, Consumer<Arguments> use) {
        if (has(key)) {
            use.accept(this);
        }
    }

    /** The rest, under the names that the contract has. */
    Map<String, Object> rest() {
        Map<String, Object> rest = new java.util.LinkedHashMap<>(given);
        rest.keySet().retainAll(unused);
        unused.clear();
        return rest;
    }
}
