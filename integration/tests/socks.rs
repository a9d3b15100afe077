//! SOCKS5: published services through it, and nothing else.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use integration::field::{overlay_addr, overlay_addr_of_role};
use integration::server::{UdpSink, sha256, write_noise};
use integration::socks::{Wanted, associate, connect};
use integration::{Field, Layout, Server};
use mesh_testkit::{Child, Curl, Need, Spec, TestUser, eventually, needs};

const NEEDED: [Need; 7] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("tcpdump"),
    Need::Program("curl"),
    Need::Program("useradd"),
    Need::Program("setpriv"),
    Need::Program("sha256sum"),
];
const SOON: Duration = Duration::from_secs(20);
const NODE: &str = "worker-node-1";
const LARGE: usize = 256 << 20;
const STREAMS: usize = 10;

fn through(field: &Field, network: &str) -> Curl {
    let proxy = field.socks(network).to_string();
    Curl::new()
        .on(Some(field.host("edge")))
        .args(["--socks5-hostname", &proxy])
}

fn download(field: &Field, port: u16, into: &PathBuf, limit: &str) -> Spec {
    through(field, "default")
        .args(["--limit-rate", limit, "--max-time", "300", "-o"])
        .arg(into)
        .arg(format!("http://{NODE}:{port}/file"))
        .into_spec()
}

#[test]
fn large_transfers_arrive_whole_beside_others() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::start(Layout::Spread, None);
    let host = field.prepare_host(NODE).expect("host");
    let source = write_noise(field.operator().work("noise"), LARGE).expect("file");
    let server = Server::start(Some(&host), NODE, Some(&source)).expect("server");
    let port = server.port();
    field
        .add_worker(NODE, "default", &[])
        .publish("files", port);
    eventually("the service is reached by name", SOON, || {
        let body = through(&field, "default")
            .get(format!("http://{NODE}:{port}/hi"))?
            .ok()?;
        ensure!(body == format!("hello from {NODE}: /hi\n"), "{body}");
        Ok(())
    });

    // Ten that take their time, for the whole of the large one.
    let others: Vec<Child> = (0..STREAMS)
        .map(|n| {
            let into = field.operator().work(&format!("other-{n}"));
            download(&field, port, &into, "1M")
                .name("other")
                .spawn()
                .expect("starts")
        })
        .collect();
    let into = field.operator().work("large");
    let ran = download(&field, port, &into, "2G")
        .name("large")
        .run(Duration::from_secs(240))
        .expect("ends")
        .expect_code(0);
    assert_eq!(sha256(&into).expect("sum"), sha256(&source).expect("sum"));
    let rate = f64::from(u32::try_from(LARGE >> 20).expect("fits")) / ran.elapsed.as_secs_f64();
    println!("256 MiB through SOCKS5 beside {STREAMS} streams: {rate:.1} MiB/s");
    for mut other in others {
        assert!(
            other.is_running(),
            "a slow stream ended: {}",
            other.log().tail(5)
        );
    }
    field.assert_logs_clean(&[]);
}

#[test]
fn nothing_outside_the_mesh_is_reached() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::with_networks(Layout::Spread, None, &["other"]);
    let host = field.prepare_host(NODE).expect("host");
    let inside = Server::start(Some(&host), NODE, None).expect("server");
    field
        .add_worker(NODE, "default", &[])
        .publish("web", inside.port());
    let foreign_host = field.prepare_host("foreign").expect("host");
    let foreign = Server::start(Some(&foreign_host), "foreign", None).expect("server");
    field
        .add_worker("foreign", "other", &[])
        .publish("web", foreign.port());
    let edge = field.host("edge").clone();
    let proxy = field.socks("default");
    for (network, node, port) in [
        ("default", NODE, inside.port()),
        ("other", "foreign", foreign.port()),
    ] {
        eventually(
            "a published service answers in its own network",
            SOON,
            || {
                through(&field, network)
                    .get(format!("http://{node}:{port}/"))?
                    .ok()
            },
        );
    }

    // Something listens at each of these, so only the proxy can be what refuses.
    let loopback = Server::start(Some(&edge), "loopback", None).expect("server");
    let foreign_overlay = overlay_addr(field.operator(), "other", "foreign");
    let own_overlay = overlay_addr_of_role(field.operator(), "default", "deployer");
    let underlay = SocketAddr::from((field.addr("core"), 8080));
    let literals = [
        loopback.addr(),
        SocketAddr::from((Ipv4Addr::new(169, 254, 169, 254), 80)),
        underlay,
        SocketAddr::from((foreign_overlay, foreign.port())),
        SocketAddr::from((own_overlay, 1080)),
        "[::1]:8081".parse().expect("an address"),
        "[::ffff:127.0.0.1]:8081".parse().expect("an address"),
    ];
    let names = [
        "example.org",
        "localhost",
        "foreign",
        "foreign.other.mesh.local",
        "core",
    ];
    let mut wanted: Vec<Wanted> = literals.into_iter().map(Wanted::Addr).collect();
    wanted.extend(names.map(|name| Wanted::Name(name.to_owned(), foreign.port())));
    wanted.push(Wanted::Name("127.0.0.1".to_owned(), loopback.port()));
    // On the node itself, but not published.
    let node_overlay = overlay_addr(field.operator(), "default", NODE);
    wanted.push(Wanted::Addr(SocketAddr::from((node_overlay, 9))));
    edge.enter(|| {
        for wanted in &wanted {
            let (reply, _) = connect(proxy, wanted).expect("the proxy answers");
            assert!(!reply.granted(), "CONNECT to {wanted:?} was granted");
        }
        let good = Wanted::Addr(SocketAddr::from((node_overlay, inside.port())));
        assert!(
            connect(proxy, &good)
                .expect("the proxy answers")
                .0
                .granted()
        );
    });
    assert_eq!((loopback.connections(), foreign.connections()), (0, 1));

    udp_does_not_leave_the_machine(&field, foreign_overlay);

    // Another user of the same machine.
    let stranger = TestUser::create().expect("user");
    let refused = through(&field, "default")
        .arg(format!("http://{NODE}:{}/", inside.port()))
        .into_spec()
        .user(&stranger)
        .run(SOON)
        .expect("runs");
    assert!(
        refused.code.is_some_and(|code| code != 0),
        "{}",
        refused.all()
    );
    assert!(!refused.stdout.contains("hello from"), "{}", refused.all());
    field.assert_logs_clean(&[]);
}

/// By UDP ASSOCIATE: a datagram must not come out of the deploy-manager's machine.
fn udp_does_not_leave_the_machine(field: &Field, foreign: Ipv4Addr) {
    let edge = field.host("edge");
    let proxy = field.socks("default");
    let sinks = [
        UdpSink::start(Some(edge), Ipv4Addr::LOCALHOST).expect("socket"),
        UdpSink::start(Some(field.host("core")), field.addr("core")).expect("socket"),
    ];
    let capture = edge.capture("any", "not net 127.0.0.0/8").expect("capture");
    edge.enter(|| {
        let direct = std::net::UdpSocket::bind("0.0.0.0:0").expect("binds");
        for sink in &sinks {
            direct.send_to(b"direct", sink.addr()).expect("sent");
            let heard = sink.received(SOON).expect("receives");
            assert_eq!(heard.as_deref(), Some(&b"direct"[..]), "the sink works");
        }
        let (reply, association) = associate(proxy).expect("the proxy answers");
        if let Some(association) = association {
            for sink in &sinks {
                association
                    .send(&Wanted::Addr(sink.addr()), b"leak")
                    .expect("sent");
            }
            for addr in ["169.254.169.254:53", "10.90.0.1:8080", "10.91.0.9:53"] {
                let addr = addr.parse().expect("an address");
                association
                    .send(&Wanted::Addr(addr), b"leak")
                    .expect("sent");
            }
            let foreign = SocketAddr::from((foreign, 53));
            association
                .send(&Wanted::Addr(foreign), b"leak")
                .expect("sent");
            for name in ["localhost", "example.org"] {
                let name = Wanted::Name(name.to_owned(), sinks[0].addr().port());
                association.send(&name, b"leak").expect("sent");
            }
        } else {
            assert!(!reply.granted());
        }
    });
    for sink in &sinks {
        assert_eq!(
            sink.received(Duration::from_secs(1)).expect("receives"),
            None,
            "a leak"
        );
    }
    // Nor towards anybody else: on loopback alone are the datagrams to the proxy itself.
    let captured = capture.finish().expect("capture");
    assert!(
        captured.contains(b"direct"),
        "the capture sees what leaves: {captured:?}"
    );
    assert!(!captured.contains(b"leak"), "a datagram left the machine");
}
