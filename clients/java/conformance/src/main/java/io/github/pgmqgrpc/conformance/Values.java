package io.github.pgmqgrpc.conformance;

import com.google.protobuf.Descriptors.EnumValueDescriptor;
import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message.Builder;
import com.google.protobuf.MessageOrBuilder;
import com.google.protobuf.Timestamp;
import io.github.pgmqgrpc.ArchivedMessage;
import io.github.pgmqgrpc.JacksonCodec;
import io.github.pgmqgrpc.Message;
import io.github.pgmqgrpc.PgmqException;
import io.github.pgmqgrpc.Queue;
import io.github.pgmqgrpc.QueuePolicy;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.lang.reflect.RecordComponent;
import java.math.BigDecimal;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.OptionalLong;

/** Values between the language of the cases and Java. */
final class Values {
    /** Under this key the map of a message keeps the message itself. */
    static final String OBJECT = "$object";

    private Values() {}

    @SuppressWarnings("unchecked")
    static Map<String, Object> map(Object value) {
        return (Map<String, Object>) value;
    }

    static List<?> list(Object value) {
        return (List<?>) value;
    }

    static BigDecimal decimal(Object number) {
        return new BigDecimal(number.toString());
    }

    static Duration span(Object seconds) {
        return Duration.ofNanos(decimal(seconds).movePointRight(9).longValueExact());
    }

    static Instant moment(Object moment) {
        if (moment instanceof Map<?, ?> map) {
            return Instant.now().plus(span(map.get("in_seconds")));
        }
        return Instant.EPOCH.plus(span(moment));
    }

    static Object at(Object value, String path) {
        Object found = value;
        for (String part : path.split("\\.")) {
            found = found instanceof List<?> list
                    ? list.get(Integer.parseInt(part))
                    : map(found).get(part);
        }
        return found;
    }

    /** What came back, as maps, lists, texts, numbers, booleans and null. */
    static Object plain(Object value) {
        if (value instanceof Optional<?> optional) {
            return optional.map(Values::plain).orElse(null);
        }
        if (value instanceof OptionalInt optional) {
            return optional.isPresent() ? optional.getAsInt() : null;
        }
        if (value instanceof OptionalLong optional) {
            return optional.isPresent() ? optional.getAsLong() : null;
        }
        if (value instanceof Duration span) {
            return BigDecimal.valueOf(span.getSeconds()).add(BigDecimal.valueOf(span.getNano(), 9));
        }
        if (value instanceof Instant moment) {
            return plain(Duration.between(Instant.EPOCH, moment));
        }
        if (value instanceof Enum<?> word) {
            return word.name();
        }
        if (value instanceof Queue queue) {
            return queue.name();
        }
        if (value instanceof Message message) {
            return message(message);
        }
        if (value instanceof ArchivedMessage archived) {
            Map<String, Object> map = message(archived.message());
            map.put("archived_at", plain(archived.archivedAt()));
            return map;
        }
        if (value instanceof PgmqException failure) {
            return error(failure);
        }
        if (value instanceof QueuePolicy policy) {
            return getters(policy);
        }
        if (value instanceof Record made) {
            return components(made);
        }
        if (value instanceof MessageOrBuilder wire) {
            return fields(wire);
        }
        if (value instanceof List<?> list) {
            List<Object> plain = new ArrayList<>();
            list.forEach(item -> plain.add(plain(item)));
            return plain;
        }
        if (value instanceof Map<?, ?> map) {
            Map<String, Object> plain = new LinkedHashMap<>();
            map.forEach((key, item) -> plain.put((String) key, OBJECT.equals(key) ? item : plain(item)));
            return plain;
        }
        return value;
    }

    private static Map<String, Object> message(Message message) {
        Map<String, Object> map = new LinkedHashMap<>();
        map.put("queue", message.queue().name());
        map.put("msg_id", message.msgId());
        map.put("read_ct", message.readCt());
        map.put("enqueued_at", plain(message.enqueuedAt()));
        map.put("last_read_at", plain(message.lastReadAt()));
        map.put("vt", plain(message.vt()));
        map.put("message", message.message());
        map.put("message_text", message.messageText());
        map.put("message_json", new JacksonCodec().encode(message.message()));
        map.put("headers", message.headers());
        map.put("headers_text", message.headersText());
        map.put("receipt", message.receipt());
        map.put(OBJECT, message);
        return map;
    }

    private static Map<String, Object> error(PgmqException failure) {
        Map<String, Object> map = new LinkedHashMap<>();
        map.put("code", failure.code().name());
        map.put("reason", failure.reason());
        map.put("field", failure.field());
        map.put("metadata", new LinkedHashMap<>(failure.metadata()));
        map.put("request_id", failure.requestId());
        map.put("retry_delay", plain(failure.retryDelay()));
        map.put("outcome_unknown", failure.outcomeUnknown());
        return map;
    }

    private static Map<String, Object> components(Record made) {
        Map<String, Object> map = new LinkedHashMap<>();
        for (RecordComponent component : made.getClass().getRecordComponents()) {
            map.put(snake(component.getName()), invoke(component.getAccessor(), made));
        }
        return map;
    }

    private static Map<String, Object> getters(QueuePolicy policy) {
        Map<String, Object> map = new LinkedHashMap<>();
        for (Method method : QueuePolicy.class.getMethods()) {
            boolean isGetter = method.getDeclaringClass() == QueuePolicy.class
                    && !Modifier.isStatic(method.getModifiers())
                    && method.getReturnType().getSimpleName().startsWith("Optional");
            Object set = isGetter ? invoke(method, policy) : null;
            if (set != null) {
                map.put(snake(method.getName()), set);
            }
        }
        return map;
    }

    private static Object invoke(Method method, Object target) {
        try {
            return plain(method.invoke(target));
        } catch (ReflectiveOperationException e) {
            throw new IllegalStateException(e);
        }
    }

    private static String snake(String name) {
        return name.replaceAll("([A-Z])", "_$1").toLowerCase(java.util.Locale.ROOT);
    }

    private static Object fields(MessageOrBuilder wire) {
        if (wire instanceof com.google.protobuf.Duration span) {
            return plain(Duration.ofSeconds(span.getSeconds(), span.getNanos()));
        }
        if (wire instanceof Timestamp moment) {
            return plain(Instant.ofEpochSecond(moment.getSeconds(), moment.getNanos()));
        }
        Map<String, Object> map = new LinkedHashMap<>();
        for (FieldDescriptor field : wire.getDescriptorForType().getFields()) {
            if (!field.hasPresence() || wire.hasField(field)) {
                map.put(field.getName(), plain(wire.getField(field)));
            }
        }
        return map;
    }

    /** Sets fields of one of the contract's requests, where the thin layer takes it as it is. */
    static <B extends Builder> B fill(B builder, Map<String, Object> given) {
        given.forEach((name, value) -> {
            FieldDescriptor field = builder.getDescriptorForType().findFieldByName(name);
            if (field == null) {
                throw new Failure("unknown argument " + name);
            }
            if (field.isRepeated()) {
                list(value).forEach(item -> builder.addRepeatedField(field, wire(field, item)));
            } else {
                builder.setField(field, wire(field, value));
            }
        });
        return builder;
    }

    private static Object wire(FieldDescriptor field, Object value) {
        return switch (field.getJavaType()) {
            case INT -> ((Number) value).intValue();
            case LONG -> ((Number) value).longValue();
            case ENUM -> enumeration(field, (String) value);
            default -> value;
        };
    }

    private static EnumValueDescriptor enumeration(FieldDescriptor field, String word) {
        String prefix = snake(field.getEnumType().getName()).substring(1).toUpperCase(java.util.Locale.ROOT);
        return field.getEnumType().findValueByName(prefix + "_" + word);
    }
}
