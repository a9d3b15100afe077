//! Publishing before a server of TLS that answers by a script.

use std::convert::Infallible;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_daemon::Task;
use mesh_daemon::tls::{self, CertificateSlot, ClientAuth};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::*;

/// How long a condition may take that is as good as there.
const SOON: Duration = Duration::from_secs(10);

/// A join token's text; nothing may tell it.
const MARKER: &str = "mesh1.marker-of-a-secret";
const BEARER: &str = "bearer-marker.of-the-account";

/// What arrived: the request's head as `METHOD path`, its authorization and type, its body.
type Arrived = Arc<Mutex<Vec<(String, String, String, Value)>>>;

/// An API on loopback, and a pod's files to reach it by.
struct Stand {
    server: Server,
    arrived: Arrived,
    dir: TempDir,
    _serving: Task,
}

/// How long the tests have patience: tries follow at once.
const SHORT: Patience = Patience {
    request: Duration::from_secs(20),
    first_pause: Duration::from_millis(1),
    longest_pause: Duration::from_millis(10),
    all: Duration::from_secs(60),
};

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("an authority")
}

impl Stand {
    /// Answers the requests in turn as `script` says, the last answer for ever, at `address`.
    async fn at(address: IpAddr, script: Vec<Response<String>>) -> Self {
        let authority = authority();
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([address.to_string()]).expect("a name");
        let own = params.signed_by(&key, &authority).expect("a certificate");
        let slot = CertificateSlot::from_pem(&own.pem(), &key.serialize_pem()).expect("a pair");
        let config = tls::server_config(slot, ClientAuth::None, &[tls::ALPN_HTTP11], None);
        let config = config.expect("TLS");
        let listener = TcpListener::bind((address, 0)).await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let arrived = Arrived::default();
        let script = Arc::new(Mutex::new(script));
        let seen = Arc::clone(&arrived);
        let serving = Task::spawn("api", async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Who does not trust us says no more.
                let Ok(stream) = tls::handshake(&config, stream).await else {
                    continue;
                };
                let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
                let service = service_fn(move |request| {
                    answer(request, Arc::clone(&seen), Arc::clone(&script))
                });
                let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                drop(served.await);
            }
        });
        let dir = TempDir::new().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("below")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        write("account/token", &format!("{BEARER}\n"));
        write("account/ca.crt", &authority.pem());
        write("account/namespace", "mesh");
        for role in ["relay", "gateway", "deployer", "worker"] {
            write(&format!("files/{role}/token"), &format!("{MARKER}{role}\n"));
        }
        let context = "files/operator/mesh/contexts/default.json";
        write(context, &format!("{{ \"key\": \"{MARKER}\" }}"));
        let variable = |name: &'static str| match name {
            "KUBERNETES_SERVICE_HOST" => Some(address.to_string()),
            _ => Some(port.to_string()),
        };
        Self {
            server: Server::from_environment(variable).expect("an address"),
            arrived,
            dir,
            _serving: serving,
        }
    }

    async fn new(script: Vec<Response<String>>) -> Self {
        Self::at("127.0.0.1".parse().expect("an address"), script).await
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    async fn publish(&self, patience: Patience) -> Result<Published, PublishError> {
        let options = PublishOptions {
            from: self.path("files"),
            namespace: None,
            nodes_namespace: "nodes".to_owned(),
            account_dir: self.path("account"),
        };
        publish(&self.server, &options, patience).await
    }

    /// Why publishing fails, as people are told; no secret is in it.
    async fn refused(&self) -> String {
        let error = self.publish(SHORT).await.expect_err("refused");
        let told = mesh_daemon::report::chain(&error) + &format!("{error:?}");
        for secret in ["marker", "bWVzaDEu"] {
            assert!(!told.contains(secret), "{told}");
        }
        mesh_daemon::report::chain(&error)
    }

    fn tries(&self) -> usize {
        self.arrived.lock().expect("whole").len()
    }
}

async fn answer(
    request: Request<Incoming>,
    arrived: Arrived,
    script: Arc<Mutex<Vec<Response<String>>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let header = |name| head.headers[name].to_str().expect("text").to_owned();
    let body = body.collect().await.expect("a body").to_bytes();
    arrived.lock().expect("whole").push((
        format!("{} {}", head.method, head.uri),
        header("authorization"),
        header("content-type"),
        serde_json::from_slice(&body).expect("JSON"),
    ));
    let mut script = script.lock().expect("whole");
    let next = if script.len() > 1 {
        script.remove(0)
    } else {
        script[0].clone()
    };
    Ok(next.map(Full::from))
}

fn status(code: u16, message: &str) -> Response<String> {
    kind_of_status(code, message, "secrets")
}

fn kind_of_status(code: u16, message: &str, kind: &str) -> Response<String> {
    let details = json!({ "kind": kind });
    let body = json!({ "kind": "Status", "message": message, "details": details });
    let mut response = Response::new(body.to_string());
    *response.status_mut() = StatusCode::from_u16(code).expect("a status");
    response
}

#[tokio::test]
async fn every_secret_is_applied_as_it_should_be() {
    let stand = Stand::new(vec![status(201, ""), status(200, "")]).await;
    let published = stand.publish(SHORT).await.expect("published");
    assert_eq!(
        published.to_string(),
        "made Secret mesh/mesh-token-relay\n\
         applied Secret mesh/mesh-token-gateway\n\
         applied Secret mesh/mesh-token-deployer\n\
         applied Secret mesh/mesh-operator\n\
         applied Secret nodes/mesh-token-worker\n"
    );
    let arrived = stand.arrived.lock().expect("whole");
    assert_eq!(arrived.len(), 5);
    let (head, authorization, kind, body) = &arrived[4];
    assert_eq!(
        head,
        "PATCH /api/v1/namespaces/nodes/secrets/mesh-token-worker\
         ?fieldManager=mesh-bootstrap&force=true&fieldValidation=Strict"
    );
    assert_eq!(authorization, &format!("Bearer {BEARER}"));
    assert_eq!(kind, "application/apply-patch+yaml");
    let wanted = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "namespace": "nodes",
            "name": "mesh-token-worker",
            "labels": { "app.kubernetes.io/part-of": "wonder-mesh" },
        },
        "type": "Opaque",
        // mesh1.marker-of-a-secretworker and the end of the line, byte for byte.
        "data": { "token": "bWVzaDEubWFya2VyLW9mLWEtc2VjcmV0d29ya2VyCg==" },
    });
    assert_eq!(body, &wanted);
    let (head, _, _, body) = &arrived[3];
    assert!(
        head.contains("/namespaces/mesh/secrets/mesh-operator?"),
        "{head}"
    );
    assert!(body["data"]["default.json"].is_string(), "{body}");
}

#[tokio::test]
async fn the_api_may_have_an_address_of_either_family() {
    for address in ["127.0.0.1", "::1"] {
        let address: IpAddr = address.parse().expect("an address");
        let has_it = std::net::TcpListener::bind((address, 0)).is_ok();
        // A kernel may be without IPv6.
        if address.is_ipv6() && !has_it {
            continue;
        }
        let stand = Stand::at(address, vec![status(200, "")]).await;
        stand.publish(SHORT).await.expect("published");
        assert_eq!(stand.tries(), 5, "{address}");
    }
}

#[tokio::test]
async fn an_api_that_is_away_is_tried_again_with_the_token_of_then() {
    let mut busy = status(429, "slow down");
    busy.headers_mut()
        .insert("retry-after", http::HeaderValue::from_static("0"));
    let away = [
        status(503, "etcd"),
        busy,
        status(409, "again"),
        status(500, ""),
    ];
    let stand = Stand::new([&away[..], &[status(200, "")]].concat()).await;
    // It rotates while the first try is under way.
    let rotated = async {
        let tried = async {
            while stand.tries() == 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, tried).await.expect("it is tried");
        std::fs::write(stand.path("account/token"), "another").expect("written");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        published = stand.publish(SHORT) => { published.expect("published"); }
        () = rotated => unreachable!("it waits for ever"),
    }
    let arrived = stand.arrived.lock().expect("whole");
    assert_eq!(arrived.len(), away.len() + 5);
    assert_eq!(arrived[0].1, format!("Bearer {BEARER}"));
    assert_eq!(arrived.last().expect("some").1, "Bearer another");
}

#[tokio::test]
async fn patience_has_an_end() {
    let stand = Stand::new(vec![status(503, "no etcd")]).await;
    let patience = Patience {
        all: Duration::ZERO,
        ..SHORT
    };
    let error = stand.publish(patience).await.expect_err("away");
    assert!(!error.is_configuration());
    let said = error.to_string();
    assert!(
        said.contains("took nothing for 0 s (503: no etcd)"),
        "{said}"
    );
    assert_eq!(stand.tries(), 1);
    // Nobody listens any more.
    let Stand {
        server,
        dir,
        _serving,
        ..
    } = stand;
    drop(_serving);
    let account = Account::open(&dir.path().join("account")).expect("files");
    let all = secret::read(&dir.path().join("files"), "mesh", "nodes").expect("files");
    let gone = async {
        loop {
            match server.apply(&account, &all[0]).await {
                Err(Failure::Passing { said, .. }) if said.contains("cannot be reached") => break,
                // The task that listens is ended at its next step.
                Err(Failure::Passing { .. }) => tokio::task::yield_now().await,
                other => panic!("{other:?}"),
            }
        }
    };
    timeout(SOON, gone).await.expect("nobody listens");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("bound").port().to_string();
    let stand = Stand::new(vec![status(200, "")]).await;
    let variable = |name| {
        let is_host = name == "KUBERNETES_SERVICE_HOST";
        Some(if is_host {
            "127.0.0.1".to_owned()
        } else {
            port.clone()
        })
    };
    let silent = Stand {
        server: Server::from_environment(variable).expect("an address"),
        ..stand
    };
    let patience = Patience {
        request: Duration::from_millis(50),
        all: Duration::ZERO,
        ..SHORT
    };
    let error = silent.publish(patience).await.expect_err("away");
    assert!(
        error.to_string().contains("no answer within 0.05 s"),
        "{error}"
    );
}

#[tokio::test]
async fn what_the_api_refuses_is_told_once_with_what_to_do() {
    let user = "User \"system:serviceaccount:mesh:mesh-bootstrap\"";
    for (answer, told) in [
        (
            status(401, "Unauthorized"),
            &["(401: Unauthorized)", "delete the pod"][..],
        ),
        (
            status(
                403,
                &format!("secrets \"x\" is forbidden: {user} cannot patch resource \"secrets\""),
            ),
            &[
                "Secret mesh/mesh-token-relay",
                "the verb patch on the resource secrets for resourceNames [mesh-token-relay]",
                "cannot patch resource",
            ],
        ),
        (
            status(403, "secrets \"mesh-token-relay\" is forbidden: "),
            &["the verb create (and patch)"],
        ),
        (
            status(
                403,
                "unable to create new content in namespace mesh because it is being terminated",
            ),
            &["while the namespace mesh is being deleted"],
        ),
        (
            kind_of_status(404, "namespaces \"mesh\" not found", "namespaces"),
            &["there is no namespace mesh for Secret mesh-token-relay"],
        ),
        (
            status(
                422,
                "Secret is invalid: data: \"bWVzaDEubWFya2VyLW9mLWEtc2VjcmV0cmVsYXkK\", \
                 mesh1.marker-of-a-secretrelay",
            ),
            &[
                "(422: Secret is invalid: data: \"[redacted]\", [redacted])",
                "quota",
            ],
        ),
        (
            Response::builder()
                .status(302)
                .body("moved".to_owned())
                .expect("an answer"),
            &["(302 Found)", "is the API"],
        ),
    ] {
        let stand = Stand::new(vec![answer]).await;
        let said = stand.refused().await;
        for part in told {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(stand.tries(), 1, "{said}");
    }
}

#[tokio::test]
async fn nothing_is_sent_to_a_server_of_another_authority() {
    let stand = Stand::new(vec![status(200, "")]).await;
    let path = stand.path("account/ca.crt");
    std::fs::write(&path, authority().pem()).expect("written");
    let said = stand.refused().await;
    // Both call themselves the same, as those of most clusters do.
    for part in [
        "cannot be trusted",
        "account/ca.crt; nothing was sent",
        "BadSignature",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(stand.tries(), 0);
}

#[tokio::test]
async fn files_that_are_missing_are_named() {
    let stand = Stand::new(vec![status(200, "")]).await;
    let files = stand.path("files");
    let remove = |path: &Path| std::fs::remove_file(path).expect("removed");
    // The operator was revoked, and the bootstrap writes no context.
    remove(&files.join("operator/mesh/contexts/default.json"));
    let published = stand.publish(SHORT).await.expect("published").to_string();
    assert!(
        published.contains("Secret mesh-operator stays"),
        "{published}"
    );
    assert_eq!(stand.tries(), 4);

    std::fs::write(files.join("gateway/token"), "\n").expect("written");
    let said = stand.refused().await;
    assert!(said.contains("gateway/token"), "{said}");
    assert!(said.contains("it is empty"), "{said}");
    remove(&files.join("gateway/token"));
    let said = stand.refused().await;
    assert!(said.contains("--from must name the same"), "{said}");

    for (file, part) in [
        ("namespace", "with a projected volume"),
        ("token", "with a projected volume"),
    ] {
        remove(&stand.path("account").join(file));
        let error = stand.publish(SHORT).await.expect_err("no file");
        assert!(error.is_configuration(), "{error:?}");
        let said = error.to_string();
        assert!(said.contains(file) && said.contains(part), "{file}: {said}");
    }
    assert_eq!(stand.tries(), 4, "nothing more was sent");
}

#[tokio::test]
async fn an_authority_or_token_that_is_none_is_told() {
    let stand = Stand::new(vec![status(200, "")]).await;
    std::fs::write(stand.path("account/token"), "two\nlines").expect("written");
    let said = stand.refused().await;
    assert!(said.contains("no token has"), "{said}");
    std::fs::write(stand.path("account/token"), BEARER).expect("written");
    std::fs::write(stand.path("account/ca.crt"), "none").expect("written");
    let said = stand.refused().await;
    assert!(said.contains("account/ca.crt holds no authority"), "{said}");
    assert_eq!(stand.tries(), 0);
}
