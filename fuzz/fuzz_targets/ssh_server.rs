//! What a client may send to the agent's SSH server before it has logged in: the identification
//! string, key exchange, packets.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mesh_ssh::{PrivateKey, RunAs, ServerConfig, SshServer};
use mesh_trace::Tracer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

static SERVER: LazyLock<SshServer> = LazyLock::new(|| {
    let config = ServerConfig {
        host_keys: vec![PrivateKey::generate()],
        run_as: RunAs::OwnUser,
        node: "fuzz".to_owned(),
        tracer: Tracer::off(),
    };
    SshServer::new(config).expect("it has a host key")
});

fuzz_target!(|data: &[u8]| {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(256 * 1024);
        let data = &data[..data.len().min(128 * 1024)];
        client.write_all(data).await.expect("it fits");
        client.shutdown().await.expect("a pipe closes");
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        if let Ok(served) = SERVER.serve(server, peer).await {
            assert_eq!(served.user, None, "somebody logged in");
        }
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("a pipe ends");
    });
});
