//! Our client against OpenSSH's server, and OpenSSH's client against our server.
//!
//! Needs Debian's openssh-server, openssh-client and rsync; runs as root or as an ordinary user.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use mesh_ssh::client::{AuthError, ConnectError};
use mesh_ssh::{
    CertificateRequest, Credential, ExecEvent, Exit, PrivateKey, PublicKey, RunAs, ServerConfig,
    Session, SshServer, Target, UserCa,
};
use mesh_types::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const DEADLINE: Duration = Duration::from_secs(30);

fn me() -> String {
    let out = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A key and a five-minute certificate for this user from `source`.
fn credential(ca: &UserCa, source: IpAddr) -> (PrivateKey, mesh_ssh::Certificate) {
    let key = PrivateKey::generate();
    let request = CertificateRequest {
        public_key: key.public_key(),
        principal: me().parse().unwrap(),
        key_id: "test operator".into(),
        serial: 1,
        source_addresses: vec![source],
    };
    let certificate = ca
        .sign(&request, Timestamp::from(SystemTime::now()))
        .unwrap();
    (key, certificate)
}

fn certificate(ca: &UserCa, source: IpAddr) -> Credential {
    let (key, certificate) = credential(ca, source);
    Credential::Certificate { key, certificate }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

// ---- OpenSSH's server, our client

struct Sshd {
    child: Child,
    addr: SocketAddr,
    host_key: PublicKey,
    user_key: PrivateKey,
    ca: UserCa,
    dir: tempfile::TempDir,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn sshd() -> Sshd {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (host, user_key, ca) = (
        PrivateKey::generate(),
        PrivateKey::generate(),
        UserCa::generate(),
    );
    write(&at("host"), &host.to_openssh().unwrap());
    write(&at("authorized"), &user_key.public_key().to_string());
    write(&at("ca.pub"), &ca.public_line());
    let port = {
        let free = std::net::TcpListener::bind((LOOPBACK, 0)).unwrap();
        free.local_addr().unwrap().port()
    };
    let d = dir.path().display();
    write(
        &at("config"),
        &format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {d}/host\nPidFile none\nUsePAM no\n\
             PermitRootLogin yes\nStrictModes no\nPasswordAuthentication yes\n\
             AuthorizedKeysFile {d}/authorized\nTrustedUserCAKeys {d}/ca.pub\n"
        ),
    );
    if me() == "root" {
        fs::create_dir_all("/run/sshd").unwrap();
    }
    let mut child = Command::new("/usr/sbin/sshd")
        .args(["-D", "-e", "-f"])
        .arg(at("config"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssh-server is installed");
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let listening = log.find(|line| line.as_ref().unwrap().contains("Server listening"));
    assert!(listening.is_some(), "sshd ended before it listened");
    // The rest of its log must be read, or it stops when the pipe is full.
    std::thread::spawn(move || log.count());
    Sshd {
        child,
        addr: (LOOPBACK, port).into(),
        host_key: host.public_key(),
        user_key,
        ca,
        dir,
    }
}

impl Sshd {
    async fn connect(&self, pinned: Vec<PublicKey>) -> Result<Session, ConnectError> {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let target = Target {
            node: "worker-node-1".into(),
            host_keys: pinned,
        };
        Session::connect(stream, &target).await
    }

    async fn login(&self, credential: &Credential) -> Result<Session, AuthError> {
        let mut session = self.connect(vec![self.host_key.clone()]).await.unwrap();
        session.authenticate(&me(), credential).await?;
        Ok(session)
    }
}

async fn run(session: &Session, command: &str) -> (String, String, Exit) {
    let mut exec = session.exec(command).await.unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match exec.next().await.expect("an exit comes before the end") {
            ExecEvent::Stdout(data) => out.extend(data),
            ExecEvent::Stderr(data) => err.extend(data),
            ExecEvent::Exit(exit) => {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                return (text(out), text(err), exit);
            }
        }
    }
}

#[tokio::test]
async fn a_key_logs_in_and_streams_status_and_signal_come_back() {
    let sshd = sshd();
    let key = Credential::Key(sshd.user_key.clone());
    let session = sshd.login(&key).await.unwrap();
    let got = run(&session, "echo out; echo err >&2; exit 3").await;
    assert_eq!(got, ("out\n".into(), "err\n".into(), Exit::Status(3)));
    let (_, _, exit) = run(&session, "kill -TERM $$").await;
    assert_eq!(exit, Exit::Signal("TERM".into()));
    session.close().await;
}

#[tokio::test]
async fn a_certificate_of_our_authority_logs_in_from_its_own_address_only() {
    let sshd = sshd();
    let session = sshd.login(&certificate(&sshd.ca, LOOPBACK)).await.unwrap();
    let (out, _, exit) = run(&session, "id -un").await;
    assert_eq!((out.trim(), exit), (me().as_str(), Exit::Status(0)));
    let elsewhere = "100.64.0.9".parse().unwrap();
    let refused = sshd
        .login(&certificate(&sshd.ca, elsewhere))
        .await
        .unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("worker-node-1 does not let") && text.contains("publickey"),
        "{text}"
    );
    let stranger = UserCa::generate();
    assert!(sshd.login(&certificate(&stranger, LOOPBACK)).await.is_err());
}

#[tokio::test]
async fn a_wrong_password_is_refused_in_words() {
    let sshd = sshd();
    let wrong = Credential::Password("not-it".to_owned().into());
    let text = sshd.login(&wrong).await.unwrap_err().to_string();
    assert!(text.contains("with this password"), "{text}");
}

#[tokio::test]
async fn another_host_key_is_refused_with_both_fingerprints_and_the_next_command() {
    let sshd = sshd();
    let pinned = PrivateKey::generate().public_key();
    let expected = pinned.fingerprint();
    let text = sshd.connect(vec![pinned]).await.unwrap_err().to_string();
    assert!(text.contains(&expected), "{text}");
    assert!(text.contains(&sshd.host_key.fingerprint()), "{text}");
    assert!(
        text.contains("mesh node host-key accept worker-node-1"),
        "{text}"
    );
    let unpinned = sshd.connect(Vec::new()).await.unwrap_err();
    assert!(
        matches!(unpinned, ConnectError::NotPinned { .. }),
        "{unpinned}"
    );
}

#[tokio::test]
async fn output_arrives_while_the_command_runs() {
    let sshd = sshd();
    let session = sshd
        .login(&Credential::Key(sshd.user_key.clone()))
        .await
        .unwrap();
    let go = sshd.dir.path().join("go");
    let wait = format!(
        "echo first; until [ -e {} ]; do sleep 0.02; done; echo second",
        go.display()
    );
    let mut exec = session.exec(&wait).await.unwrap();
    assert_eq!(exec.next().await, Some(ExecEvent::Stdout("first\n".into())));
    fs::write(&go, "").unwrap();
    assert_eq!(
        exec.next().await,
        Some(ExecEvent::Stdout("second\n".into()))
    );
    assert_eq!(exec.next().await, Some(ExecEvent::Exit(Exit::Status(0))));
    assert_eq!(exec.next().await, None);
}

#[tokio::test]
async fn what_answers_without_speaking_ssh_is_a_protocol_error() {
    let (ours, theirs) = tokio::io::duplex(1024);
    drop(theirs);
    let target = Target {
        node: "n".into(),
        host_keys: Vec::new(),
    };
    let error = Session::connect(ours, &target).await.unwrap_err();
    assert!(matches!(error, ConnectError::Protocol { .. }), "{error}");
}

// ---- our server, OpenSSH's client

struct Served {
    server: SshServer,
    ca: UserCa,
    addr: SocketAddr,
    dir: tempfile::TempDir,
    _connections: tokio::task::JoinHandle<()>,
}

async fn served() -> Served {
    let ca = UserCa::generate();
    let server = SshServer::new(ServerConfig {
        host_keys: vec![PrivateKey::generate()],
        run_as: RunAs::detect(),
        node: "worker-node-1".into(),
        tracer: mesh_trace::Tracer::off(),
    })
    .unwrap();
    server.trust(vec![ca.public_key()]);
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let accepting = server.clone();
    let connections = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, peer)) = listener.accept().await {
            let server = accepting.clone();
            connections.spawn(async move { server.serve(stream, peer.ip()).await });
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let served = Served {
        server,
        ca,
        addr,
        dir,
        _connections: connections,
    };
    let (key, certificate) = credential(&served.ca, LOOPBACK);
    served.write_identity(&key, Some(&certificate.to_string()));
    let known = format!("worker-node-1 {}", served.server.host_key_lines()[0]);
    write(&served.path("known"), &known);
    served
}

impl Served {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_identity(&self, key: &PrivateKey, certificate: Option<&str>) {
        write(&self.path("id"), &key.to_openssh().unwrap());
        match certificate {
            Some(line) => write(&self.path("id-cert.pub"), line),
            None => drop(fs::remove_file(self.path("id-cert.pub"))),
        }
    }

    fn options(&self) -> Vec<String> {
        let d = self.dir.path().display();
        [
            "-F none",
            &format!("-p {}", self.addr.port()),
            &format!("-i {d}/id"),
            "-o IdentitiesOnly=yes",
            "-o BatchMode=yes",
            "-o HostKeyAlias=worker-node-1",
            &format!("-o UserKnownHostsFile={d}/known"),
            "-o StrictHostKeyChecking=yes",
            "-o LogLevel=ERROR",
        ]
        .iter()
        .flat_map(|option| option.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .collect()
    }

    fn command(&self, first: &[&str], user: &str, rest: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("ssh");
        command.args(first).args(self.options());
        command.arg(format!("{user}@127.0.0.1")).args(rest);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.kill_on_drop(true);
        command
    }

    async fn ssh(&self, first: &[&str], rest: &[&str]) -> Output {
        finish(self.command(first, &me(), rest)).await
    }

    fn shell(&self) -> String {
        format!("ssh {}", self.options().join(" "))
    }
}

async fn finish(mut command: tokio::process::Command) -> Output {
    let running = tokio::time::timeout(DEADLINE, command.output());
    running
        .await
        .expect("ssh ends in time")
        .expect("openssh-client is installed")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssh_runs_commands_on_our_server() {
    let served = served().await;
    let got = served.ssh(&[], &["echo out; echo err >&2; exit 7"]).await;
    assert_eq!((out(&got), err(&got)), ("out\n".into(), "err\n".into()));
    assert_eq!(got.status.code(), Some(7));
    let got = served
        .ssh(&[], &["id -un; echo $HOME; pwd; echo ${SSH_TTY:-none}"])
        .await;
    let text = out(&got);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], me());
    assert_eq!(lines[1], lines[2]);
    assert_eq!(lines[3], "none");
    let got = served.ssh(&[], &["kill -KILL $$"]).await;
    assert_eq!(
        got.status.code(),
        Some(255),
        "OpenSSH shows a signal as 255"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_has_the_size_the_client_says_and_a_shell_reads_input() {
    let served = served().await;
    let got = served.ssh(&["-tt"], &["tty; stty size; echo $TERM"]).await;
    let text = out(&got);
    assert!(text.starts_with("/dev/pts/"), "{text:?} {}", err(&got));
    let mut command = served.command(&["-T"], &me(), &[]);
    command.stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"echo hello $((6*7))\nexit 4\n")
        .await
        .unwrap();
    drop(stdin);
    let got = tokio::time::timeout(DEADLINE, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    assert!(out(&got).contains("hello 42"), "{}", out(&got));
    assert_eq!(got.status.code(), Some(4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_on_a_terminal_ends_with_its_client_input() {
    let served = served().await;
    let mut command = served.command(&["-tt"], &me(), &[]);
    command.stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"echo on $(tty)\nexit 5\n")
        .await
        .unwrap();
    let got = tokio::time::timeout(DEADLINE, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    assert!(out(&got).contains("on /dev/pts/"), "{}", out(&got));
    assert_eq!(got.status.code(), Some(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_bytes_go_both_ways_at_once_and_arrive_unchanged() {
    let served = served().await;
    let data: Vec<u8> = (0..24_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let source = served.path("data");
    fs::write(&source, &data).unwrap();
    let mut command = served.command(&[], &me(), &["cat"]);
    command.stdin(fs::File::open(&source).unwrap());
    let got = finish(command).await;
    assert_eq!(got.status.code(), Some(0), "{}", err(&got));
    assert!(got.stdout == data, "{} bytes came back", got.stdout.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rsync_and_old_scp_copy_and_sftp_is_refused_in_words() {
    let served = served().await;
    let (from, to) = (served.path("from"), served.path("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), "content").unwrap();
    let mut rsync = tokio::process::Command::new("rsync");
    rsync
        .args(["-a", "-e", &served.shell()])
        .arg(format!("{}/", from.display()));
    rsync.arg(format!("{}@127.0.0.1:{}/", me(), to.display()));
    let got = finish(rsync).await;
    assert_eq!(got.status.code(), Some(0), "{}", err(&got));
    assert_eq!(fs::read_to_string(to.join("file")).unwrap(), "content");
    let mut scp = tokio::process::Command::new("scp");
    scp.arg("-O").args(
        served
            .options()
            .iter()
            .map(|o| if o == "-p" { "-P" } else { o.as_str() }),
    );
    scp.arg(from.join("file"))
        .arg(format!("{}@127.0.0.1:{}", me(), to.join("again").display()));
    let got = finish(scp).await;
    assert_eq!(got.status.code(), Some(0), "{}", err(&got));
    assert_eq!(fs::read_to_string(to.join("again")).unwrap(), "content");
    let got = served.ssh(&["-s"], &["sftp"]).await;
    assert_ne!(got.status.code(), Some(0));
    assert!(
        err(&got).contains("no SSH subsystem \"sftp\" here; use rsync"),
        "{}",
        err(&got)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_certificates_of_the_trusted_authority_for_this_user_get_in() {
    let served = served().await;
    let plain = PrivateKey::generate();
    served.write_identity(&plain, None);
    assert_eq!(served.ssh(&[], &["true"]).await.status.code(), Some(255));
    let (key, cert) = credential(&UserCa::generate(), LOOPBACK);
    served.write_identity(&key, Some(&cert.to_string()));
    assert_eq!(served.ssh(&[], &["true"]).await.status.code(), Some(255));
    let (key, cert) = credential(&served.ca, "100.64.0.1".parse().unwrap());
    served.write_identity(&key, Some(&cert.to_string()));
    assert_eq!(served.ssh(&[], &["true"]).await.status.code(), Some(255));
    let (key, cert) = credential(&served.ca, LOOPBACK);
    served.write_identity(&key, Some(&cert.to_string()));
    let other = finish(served.command(&[], "daemon", &["true"])).await;
    assert_eq!(other.status.code(), Some(255));
    assert_eq!(served.ssh(&[], &["true"]).await.status.code(), Some(0));
    served.server.trust(Vec::new());
    assert_eq!(served.ssh(&[], &["true"]).await.status.code(), Some(255));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forwarding_through_our_server_is_refused() {
    let served = served().await;
    let got = served.ssh(&["-W", &served.addr.to_string()], &[]).await;
    assert_eq!(got.status.code(), Some(255));
    assert!(
        err(&got).contains("stdio forwarding failed"),
        "{}",
        err(&got)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_is_killed_with_its_whole_group_when_the_client_goes() {
    let served = served().await;
    let pids = served.path("pids");
    let script = format!(
        "sleep 300 & echo $! > {0}; echo $$ >> {0}; trap '' HUP TERM; wait",
        pids.display()
    );
    let mut child = served.command(&[], &me(), &[&script]).spawn().unwrap();
    until("the command runs", || {
        fs::read_to_string(&pids).is_ok_and(|text| text.lines().count() == 2)
    })
    .await;
    child.kill().await.unwrap();
    let text = fs::read_to_string(&pids).unwrap();
    until("its processes are gone", || text.lines().all(is_gone)).await;
}

/// Gone, or a zombie that nobody has collected yet.
fn is_gone(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim().starts_with('Z'))
    })
}

// ---- our server, our client

async fn pair(source: IpAddr) -> (Session, tokio::task::JoinHandle<()>, UserCa) {
    let ca = UserCa::generate();
    let server = SshServer::new(ServerConfig {
        host_keys: vec![PrivateKey::generate()],
        run_as: RunAs::detect(),
        node: "n".into(),
        tracer: mesh_trace::Tracer::off(),
    })
    .unwrap();
    server.trust(vec![ca.public_key()]);
    let (near, far) = tokio::io::duplex(64 * 1024);
    let host_keys = server
        .host_key_lines()
        .iter()
        .map(|line| line.parse().unwrap())
        .collect();
    let serving = tokio::spawn(async move { drop(server.serve(far, source).await) });
    let target = Target {
        node: "n".into(),
        host_keys,
    };
    let session = Session::connect(near, &target).await.unwrap();
    (session, serving, ca)
}

#[tokio::test]
async fn our_two_ends_understand_each_other() {
    let (mut session, _serving, ca) = pair(LOOPBACK).await;
    session
        .authenticate(&me(), &certificate(&ca, LOOPBACK))
        .await
        .unwrap();
    let got = run(&session, "cat; echo $0; exit 9").await;
    assert_eq!(got.2, Exit::Status(9));
    assert!(
        !got.0.is_empty(),
        "a command reads the end of its input and goes on"
    );
    let (_, _, exit) = run(&session, "kill -USR2 $$").await;
    assert_eq!(exit, Exit::Signal("USR2".into()));
}

#[tokio::test]
async fn dropping_the_server_side_kills_the_command_and_the_client_sees_the_loss() {
    let (mut session, serving, ca) = pair(LOOPBACK).await;
    session
        .authenticate(&me(), &certificate(&ca, LOOPBACK))
        .await
        .unwrap();
    let mut exec = session.exec("echo $$; exec sleep 300").await.unwrap();
    let Some(ExecEvent::Stdout(pid)) = exec.next().await else {
        panic!("no pid")
    };
    let pid = String::from_utf8(pid.to_vec()).unwrap().trim().to_owned();
    serving.abort();
    assert_eq!(exec.next().await, Some(ExecEvent::Exit(Exit::Lost)));
    until("the command is killed", || is_gone(&pid)).await;
}

#[tokio::test]
async fn dropping_the_session_ends_what_runs_in_it() {
    let (mut session, serving, ca) = pair(LOOPBACK).await;
    session
        .authenticate(&me(), &certificate(&ca, LOOPBACK))
        .await
        .unwrap();
    let mut exec = session.exec("echo $$; exec sleep 300").await.unwrap();
    let Some(ExecEvent::Stdout(pid)) = exec.next().await else {
        panic!("no pid")
    };
    let pid = String::from_utf8(pid.to_vec()).unwrap().trim().to_owned();
    drop((exec, session));
    tokio::time::timeout(DEADLINE, serving)
        .await
        .expect("the server notices")
        .unwrap();
    assert!(is_gone(&pid), "still there after serve has ended");
}

#[tokio::test]
async fn a_certificate_for_another_address_is_refused_by_our_server() {
    let (mut session, _serving, ca) = pair("100.64.0.3".parse().unwrap()).await;
    let refused = session
        .authenticate(&me(), &certificate(&ca, LOOPBACK))
        .await;
    assert!(
        matches!(refused, Err(AuthError::Refused { .. })),
        "{refused:?}"
    );
}
