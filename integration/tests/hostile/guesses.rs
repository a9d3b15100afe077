//! Tokens that are guessed, by the thousand.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::hostile::{Others, PATIENCE, resident, used};
use integration::metrics::count;
use integration::raw::{Applicant, word};
use integration::{Cli, MeshUp};
use mesh_api::pb;
use mesh_api::pb::control_service_client::ControlServiceClient;
use mesh_testkit::{eventually, rest};
use mesh_types::JoinToken;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::{MIB, addr, tell};

/// Who guesses, all from one address.
const GUESSERS: u32 = 4;
/// Guesses over one connection.
const EACH: u64 = 1_000;
/// So many are looked up in any case.
const AT_ONCE: u64 = 4_000;
/// Guesses a second while the processor's time is measured.
const STEADY: u32 = 400;
/// How many times as much a guess may cost that meets the wall as one that is looked up: it must not
/// cost more, and what else goes on in the program is counted too.
const DEARER: u32 = 2;
/// What they all may hold of memory.
const HELD: u64 = 32 * MIB;

/// Connections of strangers that asked for something once and answer whoever asks whether they are
/// still there.
const IDLE: usize = 100;

/// What the guessers do, and what became of it.
#[derive(Debug, Default)]
struct Guesses {
    made: AtomicU64,
    refused: AtomicU64,
    is_steady: AtomicBool,
}

impl Guesses {
    /// Guesses until it is dropped.
    async fn guess(self: Arc<Self>, token: JoinToken, seed: u32) -> anyhow::Result<()> {
        let guesser = Applicant::new("guesser")?;
        let mut number = u64::from(seed) << 32;
        loop {
            let mut client = ControlServiceClient::new(Applicant::connect(&token).await?);
            // Whole but for the token, which is nobody's.
            let mut request = guesser.request(&mut client, &token).await?;
            for _ in 0..EACH {
                number += 1;
                request.token_id[8..].copy_from_slice(&number.to_be_bytes());
                let answer = client.enrol(request.clone()).await;
                let status = answer.err().context("a guess was right")?;
                match word(&status) {
                    "rate-limited" => self.refused.fetch_add(1, Ordering::Relaxed),
                    "token-unknown" | "nonce-unknown" => 0,
                    other => anyhow::bail!("a guess was answered {other:?}: {status:?}"),
                };
                self.made.fetch_add(1, Ordering::Relaxed);
                if self.is_steady.load(Ordering::Relaxed) {
                    let pause = Duration::from_secs(GUESSERS.into()) / STEADY;
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

/// The program's time for each guess while they come steadily, the least of three seconds.
fn cost(pid: i32, guesses: &Guesses) -> Duration {
    let second = || {
        let made = || guesses.made.load(Ordering::Relaxed);
        let (before, first) = (used(pid).expect("time"), made());
        rest(Duration::from_secs(1));
        let some = u32::try_from(made() - first).expect("some hundred");
        (used(pid).expect("time") - before) / some.max(1)
    };
    (0..3).map(|_| second()).min().expect("three")
}

/// Another way to the coordinator, by which everybody comes from another address.
async fn elsewhere(to: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let way = listener.local_addr()?;
    tokio::spawn(async move {
        let mut ways = JoinSet::new();
        while let Ok((near, _)) = listener.accept().await {
            ways.spawn(carry(near, to));
        }
    });
    Ok(way)
}

async fn carry(mut near: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 2], 0)))?;
    let mut far = socket.connect(to).await?;
    tokio::io::copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}

/// Strangers who ask for one thing and stay.
async fn idle(token: &JoinToken) -> anyhow::Result<Vec<ControlServiceClient<Channel>>> {
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        let mut client = ControlServiceClient::new(Applicant::connect(token).await?);
        client.challenge(pb::ChallengeRequest {}).await?;
        idle.push(client);
    }
    Ok(idle)
}

/// How long somebody takes who has a token that is good.
async fn join(name: &str, token: &JoinToken) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let joined = Applicant::new(name)?.join(token);
    tokio::time::timeout(PATIENCE, joined).await??;
    Ok(begun.elapsed())
}

#[test]
fn thousands_of_guessed_tokens_meet_a_wall_and_stop_nobody() {
    let cli = Cli::new().expect("folders");
    let mut up = MeshUp::demo(&cli);
    let pid = up.child().pid();
    let tokens: Vec<JoinToken> = (0..2)
        .map(|_| cli.token(&[]).parse().expect("a join token"))
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let connections = || anyhow::Ok(count(&up.metrics()?, &["mesh_coordinator_connections"]));
    let ours = connections().expect("metrics");
    let idle = runtime.block_on(idle(&tokens[0])).expect("connected");
    let open = connections().expect("metrics");
    assert!(open >= ours + IDLE as u64, "{open} are open");
    let before = resident(pid).expect("memory");
    let others = Others::of(&up).expect("people");
    let guesses = Arc::new(Guesses::default());
    guesses.is_steady.store(true, Ordering::Relaxed);
    let mut guessers = JoinSet::new();
    for seed in 1..=GUESSERS {
        let guess = Arc::clone(&guesses).guess(tokens[0].clone(), seed);
        guessers.spawn_on(guess, runtime.handle());
    }
    eventually("guesses are made", Duration::from_secs(30), || {
        ensure!(guesses.made.load(Ordering::Relaxed) > 0, "none was made");
        Ok(())
    });
    let looked_up = cost(pid, &guesses);
    let early = guesses.refused.load(Ordering::Relaxed);
    let made = guesses.made.load(Ordering::Relaxed);
    assert!(early == 0 || made > AT_ONCE, "{early} of {made} met a wall");
    guesses.is_steady.store(false, Ordering::Relaxed);
    // A machine that is busy with other things makes hardly more than the 200 a second that pass.
    eventually("a wall", Duration::from_secs(120), || {
        let refused = guesses.refused.load(Ordering::Relaxed);
        ensure!(refused > 100, "{refused} were refused");
        Ok(())
    });
    // Behind the same address, and from another one.
    let near = runtime.block_on(join("near", &tokens[0]));
    let far = runtime.block_on(async {
        let mut token = tokens[1].clone();
        let way = elsewhere(addr(&up.ready().coordinator.addr)).await?;
        token.coordinators = vec![way.to_string()];
        join("far", &token).await
    });
    let (near, far) = (near.expect("it joins"), far.expect("it joins"));
    guesses.is_steady.store(true, Ordering::Relaxed);
    let refused = cost(pid, &guesses);
    tell("guesses", others);
    let held = resident(pid).expect("memory").saturating_sub(before);
    let made = guesses.made.load(Ordering::Relaxed);
    println!(
        "guesses: {made} made, {} met the wall; joined meanwhile in {near:?} behind the same \
         address, in {far:?} from another; {} MiB; {looked_up:?} of a core for each guess that is \
         looked up, {refused:?} for each that meets the wall",
        guesses.refused.load(Ordering::Relaxed),
        held / MIB,
    );
    assert!(held < HELD, "{} MiB", held / MIB);
    assert!(
        refused < looked_up * DEARER,
        "{refused:?} at the wall, {looked_up:?} before"
    );
    let ended = guessers.try_join_next();
    assert!(ended.is_none(), "a guesser ended: {ended:?}");
    drop(guessers);
    // By now or soon those who asked for nothing for 10 s are gone, though nobody closed them here.
    eventually("strangers are let go", Duration::from_secs(20), || {
        let open = connections()?;
        ensure!(open < ours + 10, "{open} are open, {ours} of them ours");
        Ok(())
    });
    drop((idle, runtime));
    up.child().assert_log_clean(&[]);
    up.stop().expect("stopped");
}
