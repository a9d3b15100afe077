//! `mesh login`: an operator's key is made on the operator's machine and stays there.
//!
//! `mesh login --request FILE` makes key and request; `mesh operator add` answers with a
//! credential that holds no secret; `mesh login CREDENTIAL` joins both into a context.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_api::context::{Context, Contexts};
use mesh_api::identity::{self, Identity};
use mesh_api::pb;
use mesh_api::pb::control_service_client::ControlServiceClient;
use mesh_api::uri::Subject;
use mesh_types::Timestamp;
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;

use super::{Session, read_input};
use crate::args::LoginArgs;
use crate::text;

/// How long a coordinator that was just started is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(200);
const REQUEST_HEAD: &str = "mesh-operator-request-1:";

/// What `mesh operator add` hands back; nothing in it is secret.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Credential {
    schema: String,
    coordinators: Vec<String>,
    network: String,
    /// Base64 of the DER.
    ca: String,
    /// Base64 of the DER.
    certificate: String,
}

const CREDENTIAL_SCHEMA: &str = "mesh.credential/1";

impl Credential {
    pub(super) fn new(context: &Context, added: &pb::AddOperatorResponse) -> Self {
        Self {
            schema: CREDENTIAL_SCHEMA.to_owned(),
            coordinators: context.coordinators.clone(),
            network: context.network.clone(),
            ca: STANDARD.encode(&added.ca_certificate),
            certificate: STANDARD.encode(&added.certificate),
        }
    }
}

pub(super) async fn run(session: &Session, args: LoginArgs) -> Result<()> {
    let contexts = Contexts::of_user()?;
    // Now, not once everything else is done.
    former(&contexts, &args.name)?;
    let pending = pending_key(&contexts, &args.name);
    if let Some(request) = args.request {
        make_request(&pending, &request)?;
        return say_request(session, &request);
    }
    if let Some(state) = args.coordinator_state {
        let context = from_coordinator(&contexts, &args.name, &state).await?;
        return say_welcome(session, &args.name, &context);
    }
    let path = args.credential.context("name the credential file")?;
    let credential: Credential = serde_json::from_str(&read_input(&path)?)
        .context("this is not a credential from 'mesh operator add'")?;
    if credential.schema != CREDENTIAL_SCHEMA {
        bail!(
            "the credential is of form {:?}, which this program does not know",
            credential.schema
        );
    }
    let key = mesh_daemon::read_private(&pending)
        .context("read the key of the request")?
        .context("no request was made here: run 'mesh login --request FILE' first")?;
    let mut context = Context::new(
        credential.coordinators,
        &STANDARD
            .decode(&credential.ca)
            .context("the credential is damaged")?,
        &STANDARD
            .decode(&credential.certificate)
            .context("the credential is damaged")?,
        &key,
        credential.network,
    );
    let channel = context
        .coordinator()
        .await
        .context("connect to the coordinator")?;
    let mut admin = pb::admin_service_client::AdminServiceClient::new(channel);
    admin
        .status(pb::AdminStatusRequest {})
        .await
        .context("use the credential")?;
    keep(&contexts, &args.name, &mut context)?;
    std::fs::remove_file(&pending).context("remove the key of the request")?;
    say_welcome(session, &args.name, &context)
}

/// Saves the context under `name` and makes it the current one. One of this mesh that was there
/// before hands on what it was told by `mesh context set`; one of another mesh is kept under another
/// name, since nobody could make its key again.
fn keep(contexts: &Contexts, name: &str, context: &mut Context) -> Result<()> {
    if let Some(before) = former(contexts, name)? {
        if before.ca == context.ca {
            context.socks = before.socks;
            context.deploy = before.deploy;
            context.gateway = before.gateway;
            context.network = before.network;
        } else {
            let names = contexts.names();
            let mut spares = (1..).map(|n| format!("{name}-before-{n}"));
            let spare = spares.find(|spare| !names.contains(spare));
            let spare = spare.context("there is no name left for the context of before")?;
            contexts.save(&spare, &before, false)?;
            eprintln!("the context {name} was of another mesh: it is called {spare} now");
        }
    }
    Ok(contexts.save(name, context, true)?)
}

/// The context that has this name so far.
fn former(contexts: &Contexts, name: &str) -> Result<Option<Context>> {
    if !contexts.names().iter().any(|known| known == name) {
        return Ok(None);
    }
    let before = contexts.load(Some(name));
    let before = before.with_context(|| {
        format!("the context {name} is there and cannot be read; choose another name with --name")
    })?;
    Ok(Some(before))
}

fn say_welcome(session: &Session, name: &str, context: &Context) -> Result<()> {
    let text = format!(
        "You are an operator of {}. Try: mesh status",
        context.coordinators.join(", ")
    );
    session.done("login", name, &text)
}

/// The first operator's context, from the coordinator's own state directory.
async fn from_coordinator(contexts: &Contexts, name: &str, state: &Path) -> Result<Context> {
    let files = async || coordinator::OperatorFiles::read(state);
    let files = patiently("its first start", files).await?;
    let mut context = first_operator(&files)?;
    let channel = patiently("it to answer", || context.coordinator())
        .await
        .context("connect to the coordinator")?;
    let mut admin = pb::admin_service_client::AdminServiceClient::new(channel);
    admin
        .status(pb::AdminStatusRequest {})
        .await
        .context("use the credential")?;
    keep(contexts, name, &mut context)?;
    Ok(context)
}

/// Tries for a while: the coordinator may have been started in the same breath.
async fn patiently<T, E>(
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let give_up = Instant::now() + PATIENCE;
    let mut said = false;
    loop {
        match attempt().await {
            Err(_) if Instant::now() < give_up => {
                if !std::mem::replace(&mut said, true) {
                    eprintln!("waiting for the coordinator: {what}");
                }
                tokio::time::sleep(AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

/// The context of a coordinator's first operator.
pub(crate) fn first_operator(files: &coordinator::OperatorFiles) -> Result<Context> {
    let addrs = files.addrs.clone();
    Ok(Context::from_pem(
        addrs,
        &files.ca_pem,
        &files.cert_pem,
        &files.key_pem,
        "default",
    )?)
}

fn pending_key(contexts: &Contexts, name: &str) -> PathBuf {
    contexts.path(name).with_extension("pending-key")
}

fn make_request(pending: &Path, request: &Path) -> Result<()> {
    let identity = Identity::generate()?;
    if let Some(dir) = pending.parent() {
        mesh_daemon::private_dir(dir).context("make the folder of contexts")?;
    }
    mesh_daemon::write_private(pending, identity.pkcs8()).context("keep the new key")?;
    let text = format!("{REQUEST_HEAD}{}\n", STANDARD.encode(identity.csr_der()?));
    std::fs::write(request, text).with_context(|| format!("write {}", request.display()))?;
    Ok(())
}

fn say_request(session: &Session, request: &Path) -> Result<()> {
    let file = request.display().to_string();
    let text = format!(
        "wrote {file}. Have an operator run:\n  \
         mesh operator add YOUR-NAME --request {file} --output credential.json\n\
         and then, here: mesh login credential.json"
    );
    session.done("login --request", &file, &text)
}

/// The certificate request inside the file that [`make_request`] wrote.
pub(super) fn decode_request(text: &str) -> Result<Vec<u8>> {
    let body = text
        .trim()
        .strip_prefix(REQUEST_HEAD)
        .context("this is not a request from 'mesh login --request'")?;
    STANDARD
        .decode(body)
        .context("the request is damaged: copy it again, whole")
}

/// Renews the operator's certificate once two thirds of its life are over. What fails here is no
/// hindrance to what was asked for, so it is told and tried again at the next call.
pub(super) async fn renew_when_due(session: &Session, context: &mut Context, channel: Channel) {
    if let Err(error) = try_renew(session, context, channel).await {
        eprintln!(
            "mesh: could not renew the operator certificate: {}",
            text::explain(&error)
        );
    }
}

async fn try_renew(session: &Session, context: &mut Context, channel: Channel) -> Result<()> {
    let certificate = STANDARD.decode(&context.certificate)?;
    if !is_due(&certificate, text::now())? {
        return Ok(());
    }
    let Subject::Operator(id) = Subject::from_certificate(&certificate)? else {
        return Ok(());
    };
    let identity = Identity::from_pkcs8(&STANDARD.decode(&context.key)?)?;
    let mut control = ControlServiceClient::new(channel);
    let nonce = control
        .challenge(pb::ChallengeRequest {})
        .await?
        .into_inner()
        .nonce;
    let csr = identity.csr_der()?;
    let signature = identity.sign(&identity::renew_bytes(&nonce, id.as_bytes(), &csr))?;
    let request = pb::RenewRequest {
        node_id: id.as_bytes().to_vec(),
        nonce,
        csr,
        signature,
    };
    let renewed = control.renew(request).await?.into_inner();
    context.certificate = STANDARD.encode(renewed.certificate);
    let contexts = Contexts::of_user()?;
    let name = match &session.name {
        Some(name) => name.clone(),
        None => contexts.current()?.context("there is no current context")?,
    };
    contexts.save(&name, context, false)?;
    Ok(())
}

/// When the operator's certificate ends.
pub(super) fn certificate_until(context: &Context) -> Option<Timestamp> {
    let certificate = STANDARD.decode(&context.certificate).ok()?;
    let (_, until) = mesh_api::tls::validity(&certificate)?;
    Some(until)
}

/// Whether two thirds of the certificate's life are over.
fn is_due(certificate: &[u8], now: Timestamp) -> Result<bool> {
    let (from, until) = mesh_api::tls::validity(certificate).context("read the certificate")?;
    let life = until.since(from);
    Ok(now >= from.plus(life * 2 / 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_its_file_form() {
        let dir = tempfile::tempdir().expect("a folder");
        let (pending, file) = (dir.path().join("default.pending-key"), dir.path().join("r"));
        make_request(&pending, &file).expect("made");
        let csr = decode_request(&std::fs::read_to_string(&file).expect("read")).expect("whole");
        let key = std::fs::read(&pending).expect("kept");
        let identity = Identity::from_pkcs8(&key).expect("a key");
        let needle = identity.public_key().as_spki_der();
        assert!(csr.windows(needle.len()).any(|window| window == needle));
    }

    fn context(ca: &[u8], socks: &str) -> Context {
        let coordinators = vec!["localhost:1".to_owned()];
        let mut context = Context::new(coordinators, ca, b"c", b"k", "default");
        context.socks.insert("default".into(), socks.into());
        context
    }

    #[test]
    fn who_logs_in_again_keeps_what_the_context_was_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let contexts = Contexts::in_dir(dir.path());
        let mut told = context(b"mesh", "gateway:1080");
        told.network = "home".into();
        told.gateway = Some("http://gateway:8081".into());
        keep(&contexts, "work", &mut told.clone()).expect("saved");
        let mut fresh = context(b"mesh", "localhost:1080");
        fresh.certificate = "new".into();
        keep(&contexts, "work", &mut fresh).expect("saved");
        let now = contexts.load(Some("work")).expect("there");
        assert_eq!((now.certificate.as_str(), &*now.network), ("new", "home"));
        assert_eq!((now.socks, now.gateway), (told.socks, told.gateway));
        assert_eq!(contexts.names(), ["work"]);
    }

    #[test]
    fn a_context_of_another_mesh_is_not_lost() {
        let dir = tempfile::tempdir().expect("a folder");
        let contexts = Contexts::in_dir(dir.path());
        for mesh in [b"a", b"b", b"c"] {
            keep(&contexts, "work", &mut context(mesh, "gateway:1080")).expect("saved");
        }
        assert_eq!(contexts.names(), ["work", "work-before-1", "work-before-2"]);
        let ca = |name| contexts.load(Some(name)).expect("there").ca;
        let all = ["work-before-1", "work-before-2", "work"].map(ca);
        assert_eq!(all, [b"a", b"b", b"c"].map(|mesh| STANDARD.encode(mesh)));
        assert_eq!(contexts.current().expect("one"), Some("work".to_owned()));
    }

    #[test]
    fn anything_else_is_no_request() {
        assert!(decode_request("-----BEGIN CERTIFICATE REQUEST-----").is_err());
        assert!(decode_request("mesh-operator-request-1:!").is_err());
    }
}
