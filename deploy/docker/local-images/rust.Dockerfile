# Stand-in for rust: the toolchain of this machine, and a C compiler.
FROM debian:bookworm-20260824-slim
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates gcc libc6-dev make pkg-config \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt
ENV CARGO_HOME=/usr/local/cargo
COPY bin/cargo bin/rustc /usr/local/bin/
COPY lib /usr/local/lib
