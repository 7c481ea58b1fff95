package io.github.pgmqgrpc;

import com.google.protobuf.Timestamp;
import java.time.Duration;
import java.time.Instant;

/** Times and enumerations, between Java and the contract. */
final class Convert {
    private Convert() {}

    static com.google.protobuf.Duration duration(Duration duration) {
        return com.google.protobuf.Duration.newBuilder()
                .setSeconds(negative(duration) ? duration.getSeconds() + 1 : duration.getSeconds())
                .setNanos(negative(duration) ? duration.getNano() - 1_000_000_000 : duration.getNano())
                .build();
    }

    /** Java keeps the fraction of a negative span positive, and the contract does not. */
    private static boolean negative(Duration duration) {
        return duration.isNegative() && duration.getNano() > 0;
    }

    static Duration duration(com.google.protobuf.Duration duration) {
        return Duration.ofSeconds(duration.getSeconds(), duration.getNanos());
    }

    static Timestamp timestamp(Instant moment) {
        return Timestamp.newBuilder()
                .setSeconds(moment.getEpochSecond())
                .setNanos(moment.getNano())
                .build();
    }

    static Instant instant(Timestamp timestamp) {
        return Instant.ofEpochSecond(timestamp.getSeconds(), timestamp.getNanos());
    }

    /** Gives a text, unless it has half of a pair of surrogates, for which a question mark would be stored. */
    static String unicode(String text) {
        for (int i = 0; i < text.length(); i++) {
            if (!Character.isSurrogate(text.charAt(i))) {
                continue;
            }
            if (i + 1 == text.length() || !Character.isSurrogatePair(text.charAt(i), text.charAt(i + 1))) {
                throw new IllegalArgumentException("the text is not Unicode: there is half a character at " + i);
            }
            i++;
        }
        return text;
    }

    /** The constant of the same name, without the prefix that the contract's names have; one that is newer is the first. */
    static <E extends Enum<E>> E word(Class<E> type, String prefix, Enum<?> word) {
        for (E constant : type.getEnumConstants()) {
            if (word.name().equals(prefix + constant.name())) {
                return constant;
            }
        }
        return type.getEnumConstants()[0];
    }
}
