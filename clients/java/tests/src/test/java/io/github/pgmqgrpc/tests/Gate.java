package io.github.pgmqgrpc.tests;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.ForwardingClientCallListener.SimpleForwardingClientCallListener;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.util.List;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.CountDownLatch;

/** Holds a client's calls of {@code Send} back until it is opened, and notes which methods are called and how calls end. */
final class Gate implements ClientInterceptor {
    private final ConcurrentLinkedQueue<String> called = new ConcurrentLinkedQueue<>();
    private final ConcurrentLinkedQueue<String> ended = new ConcurrentLinkedQueue<>();
    private final CountDownLatch open = new CountDownLatch(1);

    void open() {
        open.countDown();
    }

    List<String> called() {
        return List.copyOf(called);
    }

    /** Calls that have ended, with their codes. */
    List<String> ended() {
        return List.copyOf(ended);
    }

    @Override
    public <Q, R> ClientCall<Q, R> interceptCall(MethodDescriptor<Q, R> method, CallOptions options, Channel next) {
        called.add(method.getBareMethodName());
        try {
            if (method.getBareMethodName().equals("Send")) {
                open.await();
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        return new SimpleForwardingClientCall<>(next.newCall(method, options)) {
            @Override
            public void start(Listener<R> listener, Metadata headers) {
                super.start(noting(method.getBareMethodName(), listener), headers);
            }
        };
    }

    private <R> SimpleForwardingClientCallListener<R> noting(String method, ClientCall.Listener<R> listener) {
        return new SimpleForwardingClientCallListener<>(listener) {
            @Override
            public void onClose(Status status, Metadata trailers) {
                ended.add(method + " " + status.getCode());
                super.onClose(status, trailers);
            }
        };
    }
}
