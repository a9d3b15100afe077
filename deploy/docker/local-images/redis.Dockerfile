# Stand-in for redis:7.4.5: Debian's, with the user (999), directory and command of the original.
FROM debian:bookworm-20260824-slim
RUN groupadd --system --gid 999 redis \
    && useradd --system --gid 999 --uid 999 --home-dir /data redis \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt \
    && mkdir -p /data && chown redis:redis /data
WORKDIR /data
VOLUME /data
EXPOSE 6379
USER 999:999
CMD ["redis-server"]
