//! What each long-running process needs: config, telemetry, shutdown, health endpoints, TLS.
