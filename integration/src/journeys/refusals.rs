//! What SOCKS5 must not reach: by CONNECT, by UDP ASSOCIATE, and by another user of the machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::ensure;
use mesh_testkit::{Host, Need, TestUser, eventually};
use mesh_types::WgPublicKey;

use super::transfers::{through, wait_for_service};
use crate::field::{node_of_role, overlay_addr};
use crate::metrics;
use crate::overlay_echo::OverlayEcho;
use crate::server::UdpSink;
use crate::socks::{Association, Reply, Wanted, associate, connect};
use crate::{Field, Server};

/// What the journey needs of the machine, and [`super::transfers::NEEDED`].
pub const NEEDED: [Need; 5] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("tcpdump"),
    Need::Program("useradd"),
    Need::Program("setpriv"),
];
/// The other network.
pub const OTHER: &str = "other";
/// Its worker.
const FOREIGN: &str = "foreign";
/// Where clouds tell a machine its secrets.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const SOON: Duration = Duration::from_secs(20);
/// How long a datagram may take that is already on its way within this machine.
const LOCAL: Duration = Duration::from_millis(200);

/// Something at every address that must not be reached, and the same in the network itself, where
/// it must.
#[derive(Debug)]
pub struct Refusals {
    node: &'static str,
    port: u16,
    foreign: Server,
    foreign_addr: Ipv4Addr,
    echo: OverlayEcho,
    foreign_echo: OverlayEcho,
}

impl Refusals {
    /// In a field with the network [`OTHER`], where `node` publishes a [`Server`] at `port` in the
    /// default one: joins a worker and an echo there, and an echo here.
    ///
    /// # Panics
    /// When something does not start; so do the checks below when something is not as it must be.
    pub fn install(field: &mut Field, node: &'static str, port: u16) -> Self {
        let host = field.prepare_host(FOREIGN).expect("host");
        let foreign = Server::start(Some(&host), FOREIGN, None).expect("server");
        field
            .add_worker(FOREIGN, OTHER, &[])
            .publish("web", foreign.port());
        let echo = |network: &str, name: &str| {
            let deployer = node_of_role(field.operator(), network, "deployer");
            let key: WgPublicKey = deployer["wg_key"]
                .as_str()
                .and_then(|key| key.parse().ok())
                .unwrap_or_else(|| panic!("no WireGuard key in {deployer}"));
            OverlayEcho::start(field.operator(), field.host("core"), network, name, key)
                .expect("an echo")
        };
        let (echo, foreign_echo) = (echo("default", "echo"), echo(OTHER, "foreign-echo"));
        wait_for_service(field, "default", node, node, port);
        wait_for_service(field, OTHER, FOREIGN, FOREIGN, foreign.port());
        Self {
            node,
            port,
            foreign_addr: overlay_addr(field.operator(), OTHER, FOREIGN),
            foreign,
            echo,
            foreign_echo,
        }
    }

    /// The second half of point 5 of the issue.
    pub fn refuse_all(&self, field: &Field) {
        // A bridge without ports, as if this machine had these addresses: only the proxy can be what
        // refuses them.
        let edge = field.host("edge");
        for command in [
            "link add leak type bridge".to_owned(),
            format!("addr add {METADATA}/32 dev leak"),
            format!("addr add {}/32 dev leak", self.foreign_addr),
            format!("addr add {}/32 dev leak", self.foreign_echo.addr()),
            "link set leak up".to_owned(),
        ] {
            let ran = edge.spec("ip").args(command.split(' ')).run(SOON);
            ran.expect("runs").expect_code(0);
        }
        self.by_connect(field);
        self.by_udp(field);
        self.by_another_user(field);
        let ran = edge.spec("ip").args(["link", "del", "leak"]).run(SOON);
        ran.expect("runs").expect_code(0);
    }

    fn by_connect(&self, field: &Field) {
        let edge = field.host("edge");
        let proxy = field.socks("default");
        // A listener on every address of `edge`, so that whatever is let out there is answered.
        let any = edge.enter(|| std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)));
        let any = any.expect("a listener");
        any.set_nonblocking(true).expect("set");
        let port = any.local_addr().expect("bound").port();
        let underlay = Server::at(
            Some(field.host("core")),
            field.addr("core"),
            "underlay",
            None,
        )
        .expect("server");
        let own = overlay_addr_of_deployer(field);
        let at = |ip: IpAddr| Wanted::Addr(SocketAddr::new(ip, port));
        let named = |name: &str| Wanted::Name(name.to_owned(), port);
        let refused = [
            (at(Ipv4Addr::LOCALHOST.into()), Reply::NOT_ALLOWED),
            (at(Ipv6Addr::LOCALHOST.into()), Reply::NOT_ALLOWED),
            (
                at(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()),
                Reply::NOT_ALLOWED,
            ),
            (at(METADATA.into()), Reply::NOT_ALLOWED),
            (at(field.addr("edge").into()), Reply::NOT_ALLOWED),
            (Wanted::Addr(underlay.addr()), Reply::NOT_ALLOWED),
            (at(self.foreign_addr.into()), Reply::NOT_ALLOWED),
            (
                Wanted::Addr((self.foreign_addr, self.foreign.port()).into()),
                Reply::NOT_ALLOWED,
            ),
            (at(own.into()), Reply::NOT_ALLOWED),
            (named("localhost"), Reply::NOT_ALLOWED),
            (named("127.0.0.1"), Reply::NOT_ALLOWED),
            (named("example.org"), Reply::HOST_UNREACHABLE),
            (named(FOREIGN), Reply::HOST_UNREACHABLE),
            (
                Wanted::Name("foreign.other.mesh.local".to_owned(), self.foreign.port()),
                Reply::HOST_UNREACHABLE,
            ),
            (named("core"), Reply::HOST_UNREACHABLE),
        ];
        let connections = self.foreign.connections();
        edge.enter(|| {
            // The control: without the proxy all of these answer on this machine.
            for addr in [
                SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
                (Ipv6Addr::LOCALHOST, port).into(),
                (METADATA, port).into(),
                (field.addr("edge"), port).into(),
                (self.foreign_addr, port).into(),
                underlay.addr(),
            ] {
                std::net::TcpStream::connect_timeout(&addr, SOON)
                    .unwrap_or_else(|error| panic!("{addr}: {error}"));
            }
            for (wanted, expected) in &refused {
                let (reply, _) = connect(proxy, wanted).expect("the proxy answers");
                assert_eq!(reply, *expected, "CONNECT to {wanted:?}");
            }
            let inside = overlay_addr(field.operator(), "default", self.node);
            for wanted in [
                Wanted::Addr((inside, self.port).into()),
                Wanted::Name(self.node.to_owned(), self.port),
            ] {
                let (reply, _) = connect(proxy, &wanted).expect("the proxy answers");
                assert_eq!(reply, Reply::GRANTED, "CONNECT to {wanted:?}");
            }
            // On the node itself, but not published.
            let unpublished = Wanted::Addr((inside, 9).into());
            let (reply, _) = connect(proxy, &unpublished).expect("the proxy answers");
            assert_eq!(reply, Reply::TIMED_OUT, "CONNECT to {unpublished:?}");
        });
        let accepted = std::iter::from_fn(|| any.accept().ok()).count();
        assert_eq!(accepted, 5, "the control's own, and no other");
        assert_eq!(self.foreign.connections(), connections);
        assert_eq!(underlay.connections(), 1, "the control's own, and no other");
    }

    /// By UDP ASSOCIATE. A datagram has no answer that refuses it: somebody listens at every
    /// target, answers to what is sent without the proxy, and must hear nothing through it, while
    /// a node of the network answers on the same association before and after.
    fn by_udp(&self, field: &Field) {
        let edge = field.host("edge");
        let sinks = [
            UdpSink::start(Some(edge), Ipv4Addr::LOCALHOST),
            UdpSink::start(Some(edge), METADATA),
            UdpSink::start(Some(edge), field.addr("edge")),
            UdpSink::start(Some(edge), self.foreign_addr),
            UdpSink::start(Some(field.host("core")), field.addr("core")),
            UdpSink::start(Some(field.client()), Ipv4Addr::new(10, 91, 0, 9)),
        ];
        let sinks = sinks.map(|sink| sink.expect("a socket"));
        let refusals = |reason: &str| {
            let text = field.metrics("deploy-manager").expect("metrics");
            let reason = format!("reason=\"{reason}\"");
            metrics::count(&text, &["mesh_deploy_manager_socks_refused_total", &reason])
        };
        let reasons = ["loopback", "link-local", "outside", "unknown-name"];
        let before = reasons.map(refusals);
        // On loopback there are only the datagrams from and to the proxy, and the first sink.
        let capture = edge
            .capture("any", "udp and not net 127.0.0.0/8")
            .expect("capture");
        let stranger = TestUser::create().expect("user");
        edge.enter(|| {
            let direct = UdpSocket::bind("0.0.0.0:0").expect("binds");
            for sink in &sinks {
                direct.send_to(b"direct", sink.addr()).expect("sent");
                let heard = sink.received(SOON).expect("receives");
                assert_eq!(heard.as_deref(), Some(&b"direct"[..]), "{}", sink.addr());
            }
            let mine = open(field, "default");
            let other = open(field, OTHER);
            let (here, there) = (self.echo.addr(), self.foreign_echo.addr());
            // A stranger's datagram comes first, and neither passes nor makes the association his.
            send_as(&stranger, edge, &mine, here);
            assert_eq!(asked(&mine, &Wanted::Addr((here, 53).into()), "one"), here);
            assert_eq!(asked(&mine, &Wanted::Name("echo".into(), 53), "two"), here);
            let wanted = Wanted::Addr((there, 53).into());
            assert_eq!(asked(&other, &wanted, "three"), there);

            for sink in &sinks {
                let to = Wanted::Addr(sink.addr());
                mine.send(&to, b"leak").expect("sent");
            }
            mine.send(&wanted, b"leak").expect("sent");
            let port = sinks[0].addr().port();
            for name in ["localhost", "127.0.0.1", "foreign-echo", "example.org"] {
                let name = Wanted::Name(name.to_owned(), port);
                mine.send(&name, b"leak").expect("sent");
            }
            let across = Wanted::Addr((here, 53).into());
            other.send(&across, b"leak").expect("sent");
            // An association takes one datagram after the other: when these have been answered,
            // all that came before them has been dealt with.
            assert_eq!(asked(&mine, &Wanted::Addr((here, 53).into()), "four"), here);
            assert_eq!(asked(&other, &wanted, "five"), there);
        });
        for sink in &sinks {
            let heard = sink.received(LOCAL).expect("receives");
            assert_eq!(heard, None, "a datagram got out to {}", sink.addr());
        }
        for echo in [&self.echo, &self.foreign_echo] {
            let leaked = echo.heard().contains(&b"leak".to_vec());
            assert!(!leaked, "a datagram crossed into {}", echo.addr());
            let stolen = echo.heard().contains(&b"stolen".to_vec());
            assert!(!stolen, "a stranger used the association");
        }
        let rise: Vec<(&str, u64)> = std::iter::zip(reasons, before)
            .map(|(reason, before)| (reason, refusals(reason) - before))
            .collect();
        let expected = [
            // Each destination counts once: 127.0.0.1 as address and as text is the same.
            ("loopback", 2),
            ("link-local", 1),
            // Three of the underlay and two of the other network here, one there.
            ("outside", 6),
            ("unknown-name", 2),
        ];
        assert_eq!(rise, expected, "refusals counted");
        let captured = capture.finish().expect("capture");
        assert!(
            captured.contains(b"direct"),
            "{captured:?} sees what leaves"
        );
        assert!(!captured.contains(b"leak"), "a datagram left the proxy");
    }

    fn by_another_user(&self, field: &Field) {
        let stranger = TestUser::create().expect("user");
        let url = format!("http://{}:{}/", self.node, self.port);
        let own = through(field, "default").get(&url).expect("curl runs");
        assert_eq!(own.status, 200, "{own:?}");
        let refused = through(field, "default")
            .arg(&url)
            .into_spec()
            .user(&stranger)
            .run(SOON)
            .expect("runs");
        // curl's code for a proxy that does not go through with the handshake.
        assert_eq!(refused.code, Some(97), "{}", refused.all());
        assert!(!refused.stdout.contains("hello from"), "{}", refused.all());
        let why = "socks client refused: it belongs to another user";
        let uid = format!("uid={}", stranger.uid());
        eventually("the refusal is logged", SOON, || {
            let lines = field.service("deploy-manager").log().lines();
            let logged = lines
                .iter()
                .any(|line| line.text.contains(why) && line.text.contains(&uid));
            ensure!(logged, "no line with {why:?} and {uid}");
            Ok(())
        });
    }
}

fn overlay_addr_of_deployer(field: &Field) -> Ipv4Addr {
    crate::field::overlay_addr_of_role(field.operator(), "default", "deployer")
}

/// Sends `stolen` to port 53 of `to` through somebody else's association, from a socket that is
/// still open when the proxy looks for its owner.
fn send_as(user: &TestUser, host: &Host, association: &Association, to: Ipv4Addr) {
    let relay = association.relay().expect("a relay");
    let to: String = to
        .octets()
        .iter()
        .map(|octet| format!("\\x{octet:02x}"))
        .collect();
    let script = format!(
        "exec 3<>/dev/udp/{}/{}; printf '\\x00\\x00\\x00\\x01{to}\\x00\\x35stolen' >&3; \
         read -r -t 1 -u 3 answer; echo \"sent, then ${{answer:-nothing}}\"",
        relay.ip(),
        relay.port()
    );
    let ran = host.spec("bash").args(["-c", &script]).user(user).run(SOON);
    let ran = ran.expect("runs").expect_code(0);
    assert_eq!(ran.stdout.trim(), "sent, then nothing", "{}", ran.all());
}

fn open(field: &Field, network: &str) -> Association {
    let (reply, association) = associate(field.socks(network)).expect("the proxy answers");
    assert_eq!(reply, Reply::GRANTED, "UDP ASSOCIATE in {network}");
    association.expect("granted")
}

/// Sends a question until it comes back, and returns from whom.
fn asked(association: &Association, to: &Wanted, question: &str) -> IpAddr {
    eventually(&format!("{to:?} answers"), SOON, || {
        association.send(to, question.as_bytes())?;
        while let Some((from, answer)) = association.receive(Duration::from_secs(1))? {
            if answer == question.as_bytes() {
                return Ok(from.ip());
            }
        }
        anyhow::bail!("no answer to {question}")
    })
}
