# The toolchain's image has a C compiler, which is all that the libraries in C need (zstd, lzma, ring, mimalloc).
FROM rust:1.95-slim-bookworm AS build
WORKDIR /build

# The dependencies first, with empty sources: this layer is made anew only when the list of dependencies changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests/it \
 && echo 'fn main() {}' | tee build.rs src/main.rs tests/it/main.rs >/dev/null \
 && touch src/lib.rs \
 && cargo build --release --locked

# cargo goes by the age of files, and the empty sources may be younger than the real ones.
COPY build.rs ./
COPY proto ./proto
COPY src ./src
RUN find build.rs proto src -type f -exec touch {} + \
 && cargo build --release --locked


# Not distroless: the embedded Postgres needs a shell.
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --user-group --home-dir /var/lib/pgmq-grpc --shell /usr/sbin/nologin pgmq-grpc \
 && install --directory --owner pgmq-grpc --group pgmq-grpc --mode 0700 /var/lib/pgmq-grpc
COPY LICENSE /usr/share/doc/pgmq-grpc/LICENSE
COPY --from=build /build/target/release/pgmq-grpc /usr/local/bin/pgmq-grpc

# Give DATABASE_URL. Without it the server runs a Postgres of its own, whose programs and data lie in the volume.
ENV PGMQ_GRPC_LISTEN=0.0.0.0:50051 \
    XDG_DATA_HOME=/var/lib
VOLUME /var/lib/pgmq-grpc
USER pgmq-grpc
EXPOSE 50051
STOPSIGNAL SIGTERM
# Longer than a first start of the embedded Postgres, which is downloaded.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["pgmq-grpc", "health"]
ENTRYPOINT ["pgmq-grpc"]
