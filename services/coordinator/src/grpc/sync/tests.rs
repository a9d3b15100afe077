use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt as _, stream};
use mesh_api::uri::Subject;
use mesh_daemon::{Handles, ShutdownTrigger};
use mesh_types::RelayId;

use super::*;
use crate::app::tests as testing;
use crate::caller::PeerCertificate;
use crate::grpc::auth::count_calls;
use crate::known::Entry;

/// The bytes of what a function gives.
fn size<'a, A: 'a, B: 'a, F>(_function: impl Fn(&'a A, &'a mut B) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn an_open_stream_takes_little_memory() {
    let task = size(Stream::run);
    let whole = task + size_of::<Stream>() + size_of::<Streaming<pb::SyncRequest>>();
    assert!(whole <= 1536, "{whole} bytes for each stream");
    assert!(size_of::<Step>() <= 200, "{} bytes", size_of::<Step>());
}

/// What a stream is served with, and what says that its relay belongs here.
async fn of_relay(core: &Arc<Core>, shutdown: mesh_daemon::Shutdown) -> (Grpc, Entry, RelayId) {
    let id = RelayId::from_bytes([3; 16]);
    let relay = testing::enrolled(core, id).await;
    let entry = core.members.known().enter(PeerCertificate {
        subject: Subject::Relay(id),
        identity: relay.identity.clone(),
        not_after: testing::NOW,
    });
    let grpc = Grpc::new(Arc::clone(core), shutdown, count_calls(&Handles::default()));
    (grpc, entry, id)
}

/// What a client says: a hello, and nothing more until it goes.
fn hello() -> Streaming<pb::SyncRequest> {
    let message = Some(pb::sync_request::Message::Hello(pb::SyncHello::default()));
    let message = pb::SyncRequest { message }.encode_to_vec();
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(message.len()).expect("short").to_be_bytes());
    bytes.extend(message);
    let said = stream::once(async move { Ok::<_, Infallible>(Bytes::from(bytes)) });
    let body = axum::body::Body::from_stream(said.chain(stream::pending()));
    let decoder = ProstDecoder::new(BufferSettings::new(BUFFER, GATHER));
    Streaming::new_request(decoder, body, None, Some(MAX_REQUEST))
}

#[tokio::test]
async fn a_stream_at_rest_does_nothing_until_its_relay_is_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let core = testing::core(&dir).await;
    let (_trigger, shutdown) = ShutdownTrigger::new(Duration::from_secs(1));
    let (grpc, entry, id) = of_relay(&core, shutdown.clone()).await;
    let (outbound, mut messages) = outbound::channel();
    let stream = Stream {
        grpc,
        party: Party::Relay(id),
        shown: Arc::clone(entry.shown()),
        outbound,
        _guard: shutdown.guard(),
    };
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&polls);
    let mut said = hello();
    let mut run = Box::pin(async move { stream.run(&mut said).await });
    let task = tokio::spawn(std::future::poll_fn(move |cx| {
        counted.fetch_add(1, Ordering::Relaxed);
        run.as_mut().poll(cx)
    }));
    let welcome = std::future::poll_fn(|cx| messages.poll_recv(cx)).await;
    assert!(welcome.expect("a welcome").is_ok());
    // Its session is open by the time that the engine's owner has answered something else.
    core.netmap.with(|_, _| ()).await.expect("answers");
    tokio::time::pause();
    tokio::time::sleep(Duration::from_millis(1)).await;

    let before = polls.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(polls.load(Ordering::Relaxed), before, "woken at rest");

    core.members.remove_relay(id);
    let goodbye = std::future::poll_fn(|cx| messages.poll_recv(cx)).await;
    let goodbye = goodbye.expect("a goodbye").expect("no error");
    let removed = Response::goodbye(pb::sync_goodbye::Reason::Removed);
    assert_eq!(goodbye.encode_to_vec(), removed.encode_to_vec());
    task.await.expect("ends");
}
