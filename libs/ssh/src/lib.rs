//! SSH client sessions, fan-out and reports; the agent's own SSH server.
