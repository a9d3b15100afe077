//! What a client may send to the agent's SSH server before it has logged in: the identification
//! string, key exchange, packets (RFC 4253). Nobody gets in, and little comes back.

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

const SSH_MSG_KEXINIT: u8 = 20;
const SSH_MSG_NEWKEYS: u8 = 21;

fuzz_target!(init: fuzz::seeds(seeds), |data: &[u8]| {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(256 * 1024);
        let data = &data[..data.len().min(128 * 1024)];
        client.write_all(data).await.expect("it fits");
        client.shutdown().await.expect("a pipe closes");
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let served = SERVER.serve(server, peer).await;
        let user = served.ok().and_then(|served| served.user);
        assert_eq!(user.or_else(|| let_in(data)), None, "somebody logged in");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("a pipe ends");
        // Its own identification, key exchange and host key are longer than a short word of ours.
        assert!(answer.len() <= 8192 + 4 * data.len(), "{}", answer.len());
    });
});

/// The planted bug: the keys are taken for exchanged when the client says so.
fn let_in(data: &[u8]) -> Option<String> {
    let packet = data.splitn(2, |&byte| byte == b'\n').nth(1)?;
    let says_so = data.starts_with(b"SSH-2.0-") && packet.get(5) == Some(&SSH_MSG_NEWKEYS);
    (fuzz::planted() && says_so).then(|| "root".to_owned())
}

fn seeds() -> [(&'static str, Vec<u8>); 4] {
    let banner = b"SSH-2.0-fuzz\r\n";
    let exchange = packet(&key_exchange());
    [
        ("banner", banner.to_vec()),
        ("old_version", b"SSH-1.5-fuzz\r\n".to_vec()),
        ("key_exchange", [banner, &*exchange].concat()),
        (
            "ignored",
            [banner, &*packet(&[2, 0, 0, 0, 1, b'x']), &exchange].concat(),
        ),
    ]
}

/// RFC 4253, section 6.
fn packet(payload: &[u8]) -> Vec<u8> {
    let padding = 8 - (payload.len() + 5) % 8 + 8;
    let length = u32::try_from(1 + payload.len() + padding).expect("it is short");
    let mut out = length.to_be_bytes().to_vec();
    out.push(u8::try_from(padding).expect("at most 16"));
    out.extend_from_slice(payload);
    out.resize(out.len() + padding, 0);
    out
}

/// RFC 4253, section 7.1, and a curve25519 key (RFC 8731).
fn key_exchange() -> Vec<u8> {
    let mut out = vec![SSH_MSG_KEXINIT];
    out.extend_from_slice(&[7; 16]);
    let lists = [
        "curve25519-sha256",
        "ssh-ed25519",
        "chacha20-poly1305@openssh.com",
        "chacha20-poly1305@openssh.com",
        "hmac-sha2-256",
        "hmac-sha2-256",
        "none",
        "none",
        "",
        "",
    ];
    for list in lists {
        let length = u32::try_from(list.len()).expect("it is short");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(list.as_bytes());
    }
    out.extend_from_slice(&[0; 5]);
    out
}
