package io.github.pgmqgrpc;

import io.grpc.CallOptions;
import io.grpc.ClientStreamTracer;
import io.grpc.Metadata;

/** Notices whether anything of a call has left this process. */
final class Departure extends ClientStreamTracer.Factory {
    private volatile boolean left;

    boolean left() {
        return left;
    }

    CallOptions watch(CallOptions options) {
        return options.withStreamTracerFactory(this);
    }

    /** Called again where the transport repeats a call that the server's side has certainly not looked at. */
    @Override
    public ClientStreamTracer newClientStreamTracer(ClientStreamTracer.StreamInfo info, Metadata headers) {
        left = false;
        return new ClientStreamTracer() {
            @Override
            public void outboundHeaders() {
                left = true;
            }
        };
    }
}
