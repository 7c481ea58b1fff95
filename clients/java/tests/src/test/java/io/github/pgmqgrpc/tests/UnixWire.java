package io.github.pgmqgrpc.tests;

import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Path;

/** A Unix socket that leads to the server. */
final class UnixWire implements AutoCloseable {
    private final ServerSocketChannel entry = ServerSocketChannel.open(StandardProtocolFamily.UNIX);
    private final Path path;

    UnixWire(Path path) throws IOException {
        this.path = path;
        entry.bind(UnixDomainSocketAddress.of(path));
        Wire.start(this::accept);
    }

    Path path() {
        return path;
    }

    private void accept() throws IOException {
        String[] address = Scene.TARGET.split(":");
        while (true) {
            SocketChannel inner = entry.accept();
            SocketChannel outer = SocketChannel.open(new InetSocketAddress(address[0], Integer.parseInt(address[1])));
            Wire.start(() -> copy(inner, outer));
            Wire.start(() -> copy(outer, inner));
        }
    }

    private static void copy(SocketChannel from, SocketChannel to) throws IOException {
        ByteBuffer buffer = ByteBuffer.allocate(16 * 1024);
        try (from;
                to) {
            while (from.read(buffer) >= 0) {
                buffer.flip();
                while (buffer.hasRemaining()) {
                    to.write(buffer);
                }
                buffer.clear();
            }
        }
    }

    @Override
    public void close() throws IOException {
        entry.close();
    }
}
