//! Calling any gRPC method by its name, with raw bytes: for tests that go through all of them.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Buf as _, BufMut as _};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// The time after which a stream that says nothing counts as open, and the call as allowed.
const SILENCE: Duration = Duration::from_secs(3);
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// How a server took a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, or complained about the request's content.
    Allowed,
    /// It does not know who is calling.
    Unauthenticated,
    /// It knows who is calling and says no.
    Denied,
    /// The call did not get there, which tells nothing.
    Broken(String),
}

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
    let mut broken = Outcome::Broken(String::new());
    for _ in 0..ATTEMPTS {
        let answer = first_answer(channel.clone(), method, message.clone());
        match tokio::time::timeout(SILENCE, answer).await {
            Err(_) | Ok(Ok(())) => return Outcome::Allowed,
            Ok(Err(status)) => match outcome(&status) {
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
        (_, Some("unauthenticated")) => Outcome::Unauthenticated,
        (_, Some("not-allowed" | "removed" | "revoked" | "wrong-network")) => Outcome::Denied,
        (_, Some(_)) => Outcome::Allowed,
        (Code::Unauthenticated, None) => Outcome::Unauthenticated,
        (Code::PermissionDenied, None) => Outcome::Denied,
        // A server that asks for a certificate cuts off whoever has none (RFC 8446, 6.2).
        (_, None) if format!("{status:?}").contains("CertificateRequired") => {
            Outcome::Unauthenticated
        }
        (
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted,
            None,
        ) => Outcome::Allowed,
        _ => Outcome::Broken(format!("{status:?}")),
    }
}

async fn first_answer(channel: Channel, method: &str, message: Vec<u8>) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(format!("not connected: {error:?}")))?;
    let path = format!("/mesh.v1.{method}")
        .parse()
        .map_err(|_| Status::internal("not a method name"))?;
    let request = tonic::Request::new(tokio_stream_of(message));
    let mut stream = grpc.streaming(request, path, Bytes).await?.into_inner();
    stream.message().await?;
    Ok(())
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
