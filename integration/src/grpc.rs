//! Calling any gRPC method by its name, with raw bytes: for tests that go through all of them.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Buf as _, BufMut as _};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How long a server may take for its first answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a stream that is open may take for its first message.
const OPEN: Duration = Duration::from_secs(3);
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// How a server took a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It answered with a message, or complained about the request's content.
    Allowed,
    /// It does not know who is calling.
    Unauthenticated,
    /// It knows who is calling and says no.
    Denied,
    /// It said nothing, or something that is neither an answer nor a refusal, or the call did not
    /// get there: that tells nothing.
    Broken(String),
}

/// What the coordinator calls a caller that it does not know.
const UNKNOWN_CALLER: [&str; 3] = [
    "unauthenticated",
    "certificate-expired",
    "certificate-replaced",
];
/// What it calls a caller that it knows and does not let.
const REFUSED: [&str; 4] = ["not-allowed", "removed", "revoked", "wrong-network"];
/// What it calls a request that is wrong by its content, which it looks at only once it knows that
/// the caller may ask.
const CONTENT: [&str; 9] = [
    "bad-signature",
    "csr-invalid",
    "exists",
    "invalid",
    "no-deployer",
    "nonce-unknown",
    "not-found",
    "token-unknown",
    "unknown-node",
];
/// A stream that has nothing to say before something happens: that it is open is its answer.
const WAITS: [&str; 1] = ["AdminService/WatchEvents"];

/// Every method of the contract as `Service/Method`, read from the `.proto` files.
pub fn methods() -> anyhow::Result<Vec<String>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/mesh/v1");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
        let text = std::fs::read_to_string(entry?.path())?;
        let mut service = None;
        for line in text.lines().map(str::trim) {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            match (words.next(), words.next()) {
                (Some("service"), Some(name)) => service = Some(name.to_owned()),
                (Some("rpc"), Some(name)) => {
                    let service = service.as_ref().context("an rpc belongs to a service")?;
                    found.push(format!("{service}/{name}"));
                }
                _ => {}
            }
        }
    }
    found.sort();
    anyhow::ensure!(!found.is_empty(), "no method in {}", dir.display());
    Ok(found)
}

/// Calls `Service/Method` of package `mesh.v1` with one message and looks at the first answer.
///
/// A call that a broken connection swallowed is made again: a server that wants no more of the
/// caller may close before its reason is read.
pub async fn call(channel: Channel, method: &str, message: Vec<u8>) -> Outcome {
    call_within(PATIENCE, channel, method, message).await
}

async fn call_within(
    patience: Duration,
    channel: Channel,
    method: &str,
    message: Vec<u8>,
) -> Outcome {
    let mut broken = Outcome::Broken(String::new());
    for _ in 0..ATTEMPTS {
        let answer = first_answer(channel.clone(), method, message.clone());
        let given = tokio::time::timeout(patience, answer).await;
        match given.unwrap_or(Given::Silence) {
            Given::Message => return Outcome::Allowed,
            Given::Opened if WAITS.contains(&method) => return Outcome::Allowed,
            Given::Opened => return Outcome::Broken("an open stream without a message".to_owned()),
            Given::Silence => return Outcome::Broken(format!("silence for {patience:?}")),
            Given::Status(status) => match outcome(&status) {
                Outcome::Broken(reason) => broken = Outcome::Broken(reason),
                settled => return settled,
            },
        }
        tokio::time::sleep(PAUSE).await;
    }
    broken
}

fn outcome(status: &Status) -> Outcome {
    // The coordinator's word for a refusal, which some content faults share a code with.
    let word = status
        .metadata()
        .get("mesh-error")
        .and_then(|word| word.to_str().ok());
    match (status.code(), word) {
        (_, Some(word)) if UNKNOWN_CALLER.contains(&word) => Outcome::Unauthenticated,
        (_, Some(word)) if REFUSED.contains(&word) => Outcome::Denied,
        (_, Some(word)) if CONTENT.contains(&word) => Outcome::Allowed,
        (Code::Unauthenticated, None) => Outcome::Unauthenticated,
        (Code::PermissionDenied, None) => Outcome::Denied,
        // A server that asks for a certificate cuts off whoever has none (RFC 8446, 6.2).
        (_, None) if format!("{status:?}").contains("CertificateRequired") => {
            Outcome::Unauthenticated
        }
        (Code::InvalidArgument | Code::NotFound, None) => Outcome::Allowed,
        _ => Outcome::Broken(format!("{status:?}")),
    }
}

/// What a server gave first.
enum Given {
    Message,
    /// A stream that says nothing, or that ended so.
    Opened,
    Silence,
    Status(Status),
}

async fn first_answer(channel: Channel, method: &str, message: Vec<u8>) -> Given {
    let mut grpc = tonic::client::Grpc::new(channel);
    if let Err(error) = grpc.ready().await {
        return Given::Status(Status::unavailable(format!("not connected: {error:?}")));
    }
    let Ok(path) = format!("/mesh.v1.{method}").parse() else {
        return Given::Status(Status::internal("not a method name"));
    };
    let request = tonic::Request::new(tokio_stream_of(message));
    let mut stream = match grpc.streaming(request, path, Bytes).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Given::Status(status),
    };
    match tokio::time::timeout(OPEN, stream.message()).await {
        Ok(Ok(Some(_))) => Given::Message,
        Ok(Ok(None)) | Err(_) => Given::Opened,
        Ok(Err(status)) => Given::Status(status),
    }
}

fn tokio_stream_of(message: Vec<u8>) -> impl futures_util::Stream<Item = Vec<u8>> {
    futures_util::stream::iter([message])
}

/// Messages as the bytes they are.
#[derive(Debug, Clone, Copy, Default)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_proper_answer_is_one() {
        let with = |code, word: &'static str| {
            let mut status = Status::new(code, "a sentence");
            let word = tonic::metadata::MetadataValue::from_static(word);
            status.metadata_mut().insert("mesh-error", word);
            outcome(&status)
        };
        assert_eq!(with(Code::NotFound, "not-found"), Outcome::Allowed);
        assert_eq!(with(Code::PermissionDenied, "not-allowed"), Outcome::Denied);
        let unknown = with(Code::Unauthenticated, "certificate-expired");
        assert_eq!(unknown, Outcome::Unauthenticated);
        for broken in [
            with(Code::Unavailable, "shutting-down"),
            with(Code::Internal, "internal"),
            with(Code::ResourceExhausted, "rate-limited"),
            outcome(&Status::unimplemented("no such method")),
            outcome(&Status::unknown("transport error")),
            outcome(&Status::unavailable("not connected")),
            outcome(&Status::deadline_exceeded("too late")),
        ] {
            assert!(matches!(broken, Outcome::Broken(_)), "{broken:?}");
        }
    }

    #[tokio::test]
    async fn silence_is_no_answer() {
        let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let mute = mute.expect("a listener");
        let at = format!("http://{}", mute.local_addr().expect("bound"));
        let channel = Channel::from_shared(at).expect("an address").connect_lazy();
        let patience = Duration::from_millis(50);
        let outcome = call_within(patience, channel, "ControlService/Challenge", Vec::new()).await;
        let Outcome::Broken(reason) = outcome else {
            panic!("{outcome:?}");
        };
        assert!(reason.contains("silence"), "{reason}");
    }

    #[test]
    fn the_contract_has_methods() {
        let found = methods().expect("proto files");
        assert!(
            found.contains(&"ControlService/Enrol".to_owned()),
            "{found:?}"
        );
        assert!(
            found.contains(&"DeployService/Exec".to_owned()),
            "{found:?}"
        );
    }
}
