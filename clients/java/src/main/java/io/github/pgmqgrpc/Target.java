package io.github.pgmqgrpc;

import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** Where a server is. */
final class Target {
    private static final Pattern HOST_AND_PORT =
            Pattern.compile("(?:dns:(?://[^/]*/)?/?)?(?:\\[[0-9a-fA-F:.%\\w]+]|[^\\s:/\\[\\]]+):(\\d{1,5})");
    private static final Pattern OF_GRPC = Pattern.compile("unix:.*|(?!dns:|https?:)[a-z][a-z0-9+.-]*://.*");
    private static final int LARGEST_PORT = 65_535;

    private Target() {}

    /** Gives the target, unless gRPC would take something else for it, or find out late that it is none. */
    static String checked(String target) {
        Matcher named = HOST_AND_PORT.matcher(target);
        boolean hasPort = named.matches() && isPort(Integer.parseInt(named.group(1)));
        if (hasPort || OF_GRPC.matcher(target).matches()) {
            return target;
        }
        throw new IllegalArgumentException(
                "a target is host:port, unix:/path or dns:///name:port, and not \"" + target + "\"");
    }

    private static boolean isPort(int number) {
        return number >= 1 && number <= LARGEST_PORT;
    }
}
