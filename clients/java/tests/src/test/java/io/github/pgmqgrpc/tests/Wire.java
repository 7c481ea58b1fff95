package io.github.pgmqgrpc.tests;

import java.io.IOException;
import java.io.InputStream;
import java.io.InterruptedIOException;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;

/** A way to the server that can be cut, and that can hold or swallow what the server answers. */
final class Wire implements AutoCloseable {
    private final ServerSocket entry = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
    private final Set<Socket> sockets = ConcurrentHashMap.newKeySet();
    private final Object held = new Object();
    private boolean holding;
    private volatile boolean swallowing;
    private volatile boolean refusing;

    Wire() throws IOException {
        start(this::accept);
    }

    String target() {
        return "127.0.0.1:" + entry.getLocalPort();
    }

    void swallowAnswers() {
        swallowing = true;
    }

    void holdAnswers() {
        synchronized (held) {
            holding = true;
        }
    }

    void letAnswersGo() {
        synchronized (held) {
            holding = false;
            held.notifyAll();
        }
    }

    private void awaitLeave() throws IOException {
        synchronized (held) {
            while (holding) {
                try {
                    held.wait();
                } catch (InterruptedException e) {
                    throw new InterruptedIOException();
                }
            }
        }
    }

    /** Lets no connection in until it is mended. */
    void refuse() {
        refusing = true;
        cut();
    }

    /** Breaks all connections; new ones are good. */
    void mend() {
        swallowing = false;
        refusing = false;
        cut();
    }

    private void cut() {
        sockets.forEach(Wire::close);
        sockets.clear();
    }

    private void accept() throws IOException {
        String[] address = Scene.TARGET.split(":");
        while (true) {
            Socket inner = entry.accept();
            if (refusing) {
                close(inner);
                continue;
            }
            Socket outer = new Socket(address[0], Integer.parseInt(address[1]));
            inner.setTcpNoDelay(true);
            outer.setTcpNoDelay(true);
            sockets.add(inner);
            sockets.add(outer);
            start(() -> copy(inner, outer, false));
            start(() -> copy(outer, inner, true));
        }
    }

    private void copy(Socket from, Socket to, boolean isAnswer) throws IOException {
        byte[] buffer = new byte[16 * 1024];
        try (InputStream in = from.getInputStream();
                OutputStream out = to.getOutputStream()) {
            for (int read = in.read(buffer); read >= 0; read = in.read(buffer)) {
                if (isAnswer) {
                    awaitLeave();
                }
                if (!(isAnswer && swallowing)) {
                    out.write(buffer, 0, read);
                }
            }
        }
    }

    @Override
    public void close() throws IOException {
        entry.close();
        cut();
    }

    private static void close(Socket socket) {
        try {
            socket.close();
        } catch (IOException e) {
            // It is closed all the same.
        }
    }

    static void start(Work work) {
        Thread thread = new Thread(() -> {
            try {
                work.run();
            } catch (IOException e) {
                // A connection has ended.
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    interface Work {
        void run() throws IOException;
    }
}
