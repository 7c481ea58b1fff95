package io.github.pgmqgrpc.conformance;

import java.math.BigDecimal;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;

/** Compares what came with what was expected. */
final class Matcher {
    /** What may stand in place of a value. */
    static final Set<String> WORDS = Set.of("$any", "$absent");

    private Matcher() {}

    /** What is wrong, or null if nothing is. */
    static String compare(Object expected, Object came, String path) {
        if ("$any".equals(expected)) {
            return isAbsent(came) ? path + " is absent" : null;
        }
        if ("$absent".equals(expected)) {
            return isAbsent(came) ? null : differs(path, expected, came);
        }
        if (expected instanceof Map<?, ?> map && map.size() == 1) {
            Map.Entry<?, ?> only = map.entrySet().iterator().next();
            if (only.getKey().toString().startsWith("$")) {
                return fits(only.getKey().toString(), only.getValue(), came) ? null : differs(path, expected, came);
            }
        }
        if (expected instanceof Map<?, ?> map) {
            return compareMaps(map, came, path);
        }
        if (expected instanceof List<?> list) {
            return compareLists(list, came, path);
        }
        if (expected instanceof Number wanted && came instanceof Number number) {
            return Values.decimal(wanted).compareTo(Values.decimal(number)) == 0 ? null : differs(path, expected, came);
        }
        return Objects.equals(expected, came) ? null : differs(path, expected, came);
    }

    private static String compareMaps(Map<?, ?> expected, Object came, String path) {
        if (!(came instanceof Map<?, ?> map)) {
            return differs(path, expected, came);
        }
        for (Map.Entry<?, ?> entry : expected.entrySet()) {
            String problem = compare(entry.getValue(), map.get(entry.getKey()), path + "." + entry.getKey());
            if (problem != null) {
                return problem;
            }
        }
        return null;
    }

    private static String compareLists(List<?> expected, Object came, String path) {
        if (!(came instanceof List<?> list) || list.size() != expected.size()) {
            return differs(path, expected, came);
        }
        for (int i = 0; i < expected.size(); i++) {
            String problem = compare(expected.get(i), list.get(i), path + "." + i);
            if (problem != null) {
                return problem;
            }
        }
        return null;
    }

    private static boolean fits(String matcher, Object wanted, Object came) {
        return switch (matcher) {
            case "$at_least" ->
                came instanceof Number number && Values.decimal(number).compareTo(Values.decimal(wanted)) >= 0;
            case "$at_most" ->
                came instanceof Number number && Values.decimal(number).compareTo(Values.decimal(wanted)) <= 0;
            case "$in_seconds" -> came instanceof Number number && isBetween((List<?>) wanted, number);
            case "$unordered" -> came instanceof List<?> list && fitsUnordered((List<?>) wanted, list);
            case "$length" ->
                came instanceof List<?> list
                        ? list.size() == ((Number) wanted).intValue()
                        : came instanceof String text
                                && text.codePointCount(0, text.length()) == ((Number) wanted).intValue();
            case "$contains" ->
                came instanceof String text
                        ? text.contains((String) wanted)
                        : came instanceof List<?> list
                                && list.stream().anyMatch(item -> compare(wanted, item, "") == null);
            case "$not" -> compare(wanted, came, "") != null;
            default -> throw new Failure("unknown matcher " + matcher);
        };
    }

    private static boolean isBetween(List<?> bounds, Number moment) {
        BigDecimal now = BigDecimal.valueOf(System.currentTimeMillis(), 3);
        BigDecimal seconds = Values.decimal(moment).subtract(now);
        return seconds.compareTo(Values.decimal(bounds.get(0))) >= 0
                && seconds.compareTo(Values.decimal(bounds.get(1))) <= 0;
    }

    private static boolean fitsUnordered(List<?> wanted, List<?> came) {
        List<Object> left = new ArrayList<>(came);
        for (Object item : wanted) {
            int found = 0;
            while (found < left.size() && compare(item, left.get(found), "") != null) {
                found++;
            }
            if (found == left.size()) {
                return false;
            }
            left.remove(found);
        }
        return left.isEmpty();
    }

    private static boolean isAbsent(Object came) {
        return came == null
                || "".equals(came)
                || came instanceof List<?> list && list.isEmpty()
                || came instanceof Map<?, ?> map && map.isEmpty();
    }

    private static String differs(String path, Object expected, Object came) {
        return "expected" + (path.isEmpty() ? "" : " at " + path.substring(1)) + " " + shortened(expected)
                + ", and came " + shortened(came);
    }

    private static String shortened(Object value) {
        String text = String.valueOf(value);
        return text.length() > 500 ? text.substring(0, 500) + "…" : text;
    }
}
