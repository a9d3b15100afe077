//! What a SOCKS5 client may send before it is connected: greeting, login, request, UDP header
//! (RFC 1928, RFC 1929). Nobody gets a request read without the password, nothing but nodes of the
//! network may be asked for, and the answers are short.
//!
//! The lowest bit of the first byte says whether the listener asks for a password.

#![no_main]

use std::net::IpAddr;

use deploy_manager::socks::policy::{Refusal, decide};
use deploy_manager::socks::{Access, read_request};
use fast_socks5::util::target_addr::TargetAddr;
use libfuzzer_sys::fuzz_target;
use mesh_daemon::Secret;
use mesh_types::{
    Cursor, DiscoPublicKey, Netmap, NetworkId, NodeId, NodeState, OverlayAddrs, PacketFilter, Peer,
    Role, SelfNode, WgPublicKey,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const USER: &str = "anna";
const PASSWORD: &str = "0123456789abcdef";

fuzz_target!(init: fuzz::seeds(seeds), |input: &[u8]| {
    let Some((&first, data)) = input.split_first() else {
        return;
    };
    let locked = first & 1 == 1;
    let access = if locked {
        Access::Password {
            user: USER.to_owned(),
            password: Secret::new(PASSWORD),
        }
    } else {
        Access::OwnUser
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let head = &data[..data.len().min(32 * 1024)];
        client.write_all(head).await.expect("it fits");
        client.shutdown().await.expect("a pipe closes");
        if let Ok((proto, _command, target)) = read_request(server, &access).await {
            let knows = |secret: &str| data.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!locked || (knows(USER) && knows(PASSWORD)), "nobody logged in");
            check(&target);
            drop(proto.reply_error(&Refusal::NotReady.reply()).await);
        }
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("a pipe ends");
        assert!(answer.len() <= 14, "{answer:?}");
        if let Ok((_fragment, target, _payload)) = fast_socks5::parse_udp_request(data).await {
            check(&target);
        }
    });
});

/// Without a netmap nothing may be let through, and with one only what is in it.
fn check(target: &TargetAddr) {
    decide(None, target).expect_err("there is no network");
    let netmap = netmap();
    let allowed = decide(Some(&netmap), target);
    if let Ok(to) = allow(allowed, target) {
        let peer = &netmap.peers[&NodeId::from_bytes([2; 16])];
        assert!(
            peer.addrs.contains(to.ip()) && to.port() != 0,
            "{target:?} is {to}"
        );
    }
}

fn allow(
    allowed: Result<std::net::SocketAddr, Refusal>,
    target: &TargetAddr,
) -> Result<std::net::SocketAddr, Refusal> {
    if fuzz::planted()
        && let TargetAddr::Ip(addr) = target
        && let IpAddr::V6(ip) = addr.ip()
        && ip.octets()[..4] == [0xfd, 0x7a, 0x11, 0x5c]
    {
        // Only the beginning of the address is compared.
        return Ok(*addr);
    }
    allowed
}

fn netmap() -> Netmap {
    let overlay = |n: u8| OverlayAddrs {
        v4: [100, 64, 0, n].into(),
        v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, u16::from(n)].into(),
    };
    let peer = Peer {
        id: NodeId::from_bytes([2; 16]),
        name: "worker".parse().expect("a name"),
        role: Role::Worker,
        addrs: overlay(2),
        routes: Vec::new(),
        wg_key: WgPublicKey::from_bytes([2; 32]),
        disco_key: DiscoPublicKey::from_bytes([2; 32]),
        services: Vec::new(),
        ssh_host_keys: Vec::new(),
        ssh_user: String::new(),
        endpoints: Vec::new(),
        home_relay: None,
        state: NodeState::Online,
    };
    Netmap {
        cursor: Cursor::default(),
        node: SelfNode {
            id: NodeId::from_bytes([1; 16]),
            network: NetworkId::from_bytes([1; 16]),
            network_name: "default".parse().expect("a name"),
            name: "deploy-manager".parse().expect("a name"),
            role: Role::Deployer,
            addrs: overlay(1),
            console_prefix: "/deploy-manager/".to_owned(),
            ssh_ca: String::new(),
        },
        peers: [(peer.id, peer)].into(),
        filter: PacketFilter::default(),
        relays: Vec::new(),
    }
}

fn seeds() -> [(&'static str, Vec<u8>); 6] {
    let greeting = |method: u8| [5, 1, method];
    let name = |command: u8, name: &str| {
        let length = u8::try_from(name.len()).expect("it is short");
        [&[5, command, 0, 3, length], name.as_bytes(), &[0, 22]].concat()
    };
    let login = [&[1, 4], USER.as_bytes(), &[16], PASSWORD.as_bytes()].concat();
    let v6 = [
        0xfd, 0x7a, 0x11, 0x5d, 0xa1, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
    ];
    [
        (
            "name",
            [&[0], &greeting(0)[..], &name(1, "worker")].concat(),
        ),
        (
            "associate",
            [
                &[0],
                &greeting(0)[..],
                &name(3, "worker.default.mesh.local"),
            ]
            .concat(),
        ),
        (
            "v4",
            [&[0], &greeting(0)[..], &[5, 1, 0, 1, 100, 64, 0, 2, 0, 22]].concat(),
        ),
        (
            "v6",
            [&[0], &greeting(0)[..], &[5, 1, 0, 4], &v6, &[0, 22]].concat(),
        ),
        (
            "login",
            [&[1], &greeting(2)[..], &login, &name(1, "worker")].concat(),
        ),
        (
            "udp",
            [&[0, 0, 0, 0, 4], &v6[..], &[0, 53], b"question"].concat(),
        ),
    ]
}
