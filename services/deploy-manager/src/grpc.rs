//! `DeployService` for operators: the SSH runner on the bus.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_api::pb;
use mesh_api::pb::deploy_service_server::{DeployService, DeployServiceServer};
use mesh_api::pb::exec_response::Event;
use mesh_api::uri::Subject;
use mesh_daemon::{GrpcCalls, GrpcMethod, Handles, Shutdown, Task, Tasks, accept};
use mesh_ssh::report::{Outcome, TargetReport};
use mesh_ssh::{ExecEvent, Exit};
use mesh_trace::Tracer;
use mesh_types::{NetworkName, OperatorId};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};

use crate::member::Member;
use crate::members::Members;
use crate::metrics::ServiceMetrics;
use crate::runner::{Progress, Run, RunError, Target, select_newest};
use crate::tls;

use self::vouched::Vouched;

mod access;
mod vouched;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at the same time.
const MAX_HANDSHAKES: usize = 64;
/// Answers on their way to a caller; a slow caller slows the commands down.
const ANSWERS: usize = 64;
/// What `Status` runs.
const STATUS_COMMAND: &str = "uname -n";
/// At most this much of a host name is read.
const HOSTNAME: usize = 256;

/// What is served.
const METHODS: [GrpcMethod; 2] = [
    GrpcMethod {
        path: "/mesh.v1.DeployService/Status",
        endless: false,
    },
    GrpcMethod {
        path: "/mesh.v1.DeployService/Exec",
        endless: false,
    },
];

/// Serves callers until shutdown begins; calls under way may finish.
pub(crate) async fn serve(
    listener: TcpListener,
    members: Members,
    metrics: ServiceMetrics,
    handles: &Handles,
    shutdown: Shutdown,
) -> Result<(), tonic::transport::Error> {
    let (connections, incoming) = mpsc::channel(16);
    let handshakes = handshakes(listener, members.clone(), connections, shutdown.clone());
    let _handshakes = Task::spawn("grpc handshakes", handshakes);
    let calls = GrpcCalls::register(handles, "mesh_deploy_manager", METHODS, |extensions| {
        extensions
            .get::<Caller>()
            .is_some_and(|caller| !caller.0.is_empty())
    });
    let service = Deploy {
        members,
        vouched: Arc::default(),
        metrics,
        tracer: handles.tracer.clone(),
        shutdown: shutdown.clone(),
    };
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(15)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .layer(calls)
        .add_service(DeployServiceServer::new(service))
        .serve_with_incoming_shutdown(
            ReceiverStream::new(incoming).map(Ok::<_, io::Error>),
            async move { shutdown.draining().await },
        )
        .await
}

async fn handshakes(
    listener: TcpListener,
    members: Members,
    connections: mpsc::Sender<Connection>,
    shutdown: Shutdown,
) {
    let mut running = Tasks::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = accept(&listener), if running.len() < MAX_HANDSHAKES => accepted,
            _ended = running.next_end() => continue,
            () = shutdown.draining() => return,
        };
        let config = match tls::server_config(&members) {
            Ok(config) => config,
            Err(error) => {
                tracing::info!(
                    error = format!("{error:#}"),
                    "grpc caller refused: no network yet"
                );
                continue;
            }
        };
        let connections = connections.clone();
        running.spawn("grpc handshake", async move {
            let handshake = TlsAcceptor::from(config).accept(stream);
            match tokio::time::timeout(HANDSHAKE, handshake).await {
                // The receiver is gone only when the server is.
                Ok(Ok(stream)) => drop(connections.send(Connection(stream)).await),
                Ok(Err(error)) => tracing::info!(%peer, %error, "grpc caller refused"),
                Err(_elapsed) => tracing::debug!(%peer, "grpc caller said nothing"),
            }
        });
    }
}

/// An accepted connection; tells each call who the caller is.
struct Connection(TlsStream<TcpStream>);

/// The caller's certificate chain, the caller's own first.
#[derive(Debug, Clone)]
struct Caller(Arc<[CertificateDer<'static>]>);

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        let chain = self.0.get_ref().1.peer_certificates().unwrap_or_default();
        Caller(chain.iter().map(|cert| cert.clone().into_owned()).collect())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

struct Deploy {
    members: Members,
    vouched: Arc<Vouched>,
    metrics: ServiceMetrics,
    tracer: Tracer,
    shutdown: Shutdown,
}

/// A call that was let in.
struct Admitted {
    member: Arc<Member>,
    vouched: Arc<Vouched>,
    operator: OperatorId,
}

/// What both calls say about whom to run on.
struct Asked {
    targets: Vec<String>,
    user: String,
    port: u32,
    auth: Option<pb::SshAuth>,
    timeout_millis: u64,
}

impl Deploy {
    /// Lets operators of the network's own coordinator in, and nobody else.
    fn admit(&self, network: &str, caller: Option<&Caller>) -> Result<Admitted, Status> {
        let caller = caller.ok_or_else(|| Status::unauthenticated("a certificate is needed"))?;
        let leaf = caller.0.first().map(AsRef::as_ref).unwrap_or_default();
        let Ok(Subject::Operator(operator)) = Subject::from_certificate(leaf) else {
            return Err(Status::permission_denied("only operators may do this"));
        };
        let network: NetworkName = if network.is_empty() {
            NetworkName::default_network()
        } else {
            let parsed = network.parse();
            parsed.map_err(|error| Status::invalid_argument(format!("{error}")))?
        };
        let member = self.members.get(&network).ok_or_else(|| {
            Status::not_found(format!(
                "this deploy-manager has not joined network {network}; let it in with: \
                 deploy-manager join --token-file FILE"
            ))
        })?;
        match tls::is_of_ca(&caller.0, member.node.state_dir()) {
            Ok(true) => Ok(Admitted {
                member,
                vouched: Arc::clone(&self.vouched),
                operator,
            }),
            Ok(false) => Err(Status::permission_denied(
                "the operator belongs to another coordinator than the network",
            )),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "cannot check an operator");
                Err(Status::internal(
                    "the deploy-manager cannot check who you are",
                ))
            }
        }
    }

    /// A run on the targets, with credentials in hand.
    async fn prepare(
        &self,
        admitted: &Admitted,
        asked: Asked,
        command: &str,
    ) -> Result<(Run, Vec<Target>), Status> {
        let port = match asked.port {
            0 => mesh_types::service::SSH_PORT,
            port => u16::try_from(port)
                .map_err(|_| Status::invalid_argument(format!("{port} is no port")))?,
        };
        let member = Arc::clone(&admitted.member);
        let targets = select_newest(member.node.netmap(), &asked.targets, &asked.user)
            .await
            .ok_or_else(|| Status::unavailable(RunError::NotReady.to_string()))?;
        let credentials = access::credentials(admitted, asked.auth, &targets).await?;
        let limit = Some(asked.timeout_millis).filter(|&millis| millis != 0);
        let run = Run {
            node: member.node.clone(),
            port,
            command: command.to_owned(),
            credentials,
            time_limit: limit.map(Duration::from_millis),
            tracer: self.tracer.clone(),
        };
        mesh_trace::note("mesh.operator", admitted.operator.to_string());
        mesh_trace::note("mesh.network", member.network.to_string());
        tracing::info!(
            network = %member.network,
            operator = %admitted.operator,
            targets = targets.len(),
            "ssh run"
        );
        Ok((run, targets))
    }
}

#[tonic::async_trait]
impl DeployService for Deploy {
    async fn status(
        &self,
        request: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let _guard = self.shutdown.guard();
        let admitted = self.admit(&request.get_ref().network, request.extensions().get())?;
        let request = request.into_inner();
        let asked = Asked {
            targets: request.targets,
            user: request.user,
            port: request.port,
            auth: request.auth,
            timeout_millis: request.timeout_millis,
        };
        let (run, targets) = self.prepare(&admitted, asked, STATUS_COMMAND).await?;
        let mut names: Vec<Vec<u8>> = targets.iter().map(|_| Vec::new()).collect();
        let (events, mut progress) = mpsc::channel(ANSWERS);
        let collect = async {
            while let Some((index, event)) = progress.recv().await {
                if let Progress::Output(ExecEvent::Stdout(data)) = event {
                    let name: &mut Vec<u8> = &mut names[index];
                    let room = HOSTNAME.saturating_sub(name.len()).min(data.len());
                    name.extend(&data[..room]);
                }
            }
        };
        let (results, ()) = tokio::join!(run.to_end(&targets, events), collect);
        let answers = results.into_iter().zip(&targets).zip(names);
        let targets = answers.map(|((result, target), name)| {
            self.metrics.command(result.ok);
            target_status(result, target, &name)
        });
        Ok(Response::new(pb::StatusResponse {
            targets: targets.collect(),
        }))
    }

    type ExecStream = Answers;

    async fn exec(&self, request: Request<pb::ExecRequest>) -> Result<Response<Answers>, Status> {
        let guard = self.shutdown.guard();
        let admitted = self.admit(&request.get_ref().network, request.extensions().get())?;
        let request = request.into_inner();
        let asked = Asked {
            targets: request.targets,
            user: request.user,
            port: request.port,
            auth: request.auth,
            timeout_millis: request.timeout_millis,
        };
        let (run, targets) = self.prepare(&admitted, asked, &request.command).await?;
        let (answers, stream) = mpsc::channel(ANSWERS);
        let metrics = self.metrics.clone();
        let work = async move {
            let _guard = guard;
            exec(run, targets, answers, metrics).await;
        };
        Ok(Response::new(Answers {
            stream: ReceiverStream::new(stream),
            _work: Task::spawn("grpc exec", mesh_trace::in_current(work)),
        }))
    }
}

/// Runs to the end and sends every event as it comes.
async fn exec(
    run: Run,
    targets: Vec<Target>,
    answers: mpsc::Sender<Result<pb::ExecResponse, Status>>,
    metrics: ServiceMetrics,
) {
    let (events, mut progress) = mpsc::channel::<(usize, Progress)>(ANSWERS);
    let mut told = vec![false; targets.len()];
    let forward = async {
        while let Some((index, event)) = progress.recv().await {
            let event = match event {
                Progress::Output(ExecEvent::Stdout(data)) => Event::Stdout(data.to_vec()),
                Progress::Output(ExecEvent::Stderr(data)) => Event::Stderr(data.to_vec()),
                Progress::Output(ExecEvent::Exit(_)) => continue,
                Progress::Ended(outcome) => {
                    told[index] = true;
                    Event::Exit(exit_of(outcome))
                }
            };
            let target = targets[index].label.clone();
            let answer = pb::ExecResponse {
                target,
                event: Some(event),
            };
            // When the caller has gone, this task is aborted with its stream.
            drop(answers.send(Ok(answer)).await);
        }
    };
    let (results, ()) = tokio::join!(run.to_end(&targets, events), forward);
    for ((result, target), told) in results.into_iter().zip(&targets).zip(told) {
        metrics.command(result.ok);
        if !told {
            let failure = result.reason.unwrap_or_default();
            let event = Event::Exit(pb::ExecExit {
                code: None,
                failure,
            });
            let answer = pb::ExecResponse {
                target: target.label.clone(),
                event: Some(event),
            };
            drop(answers.send(Ok(answer)).await);
        }
    }
}

fn exit_of(outcome: Outcome) -> pb::ExecExit {
    match outcome {
        Outcome::Exited(exit) => pb::ExecExit {
            code: exit.shell_code(),
            failure: match exit {
                Exit::Status(_) => String::new(),
                Exit::Signal(signal) => format!("ended by signal {signal}"),
                Exit::Lost => "the connection was lost while the command ran".to_owned(),
            },
        },
        Outcome::Failed(failure) => pb::ExecExit {
            code: None,
            failure,
        },
    }
}

fn target_status(result: TargetReport, target: &Target, name: &[u8]) -> pb::TargetStatus {
    let hostname = String::from_utf8_lossy(name).trim().to_owned();
    let ok = result.ok && !hostname.is_empty();
    let silent = || "it did not say its host name".to_owned();
    pb::TargetStatus {
        target: result.target,
        ok,
        hostname,
        addr: target
            .peer
            .as_ref()
            .map_or_else(String::new, |peer| peer.addrs.v4.to_string()),
        reason: if ok {
            String::new()
        } else {
            result.reason.unwrap_or_else(silent)
        },
    }
}

/// The answers of one `Exec`; dropping it, as happens when the caller goes, stops the run.
#[derive(Debug)]
pub(crate) struct Answers {
    stream: ReceiverStream<Result<pb::ExecResponse, Status>>,
    _work: Task,
}

impl Stream for Answers {
    type Item = Result<pb::ExecResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.stream).poll_next(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_contract_is_counted() {
        let proto = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../proto/mesh/v1/deploy.proto"
        );
        let text = std::fs::read_to_string(proto).expect("the contract");
        let named = text.lines().filter_map(|line| {
            let rest = line.trim().strip_prefix("rpc ")?;
            Some(format!(
                "/mesh.v1.DeployService/{}",
                rest.split(['(', ' ']).next()?
            ))
        });
        let named: Vec<String> = named.collect();
        assert_eq!(named, METHODS.map(|method| method.path));
    }

    #[test]
    fn an_exit_says_the_code_or_why_there_is_none() {
        let exited = |exit| exit_of(Outcome::Exited(exit));
        assert_eq!(exited(Exit::Status(3)).code, Some(3));
        assert_eq!(exited(Exit::Signal("TERM".into())).code, Some(143));
        assert_eq!(exited(Exit::Lost).code, None);
        let failed = exit_of(Outcome::Failed("no way".into()));
        assert_eq!((failed.code, failed.failure.as_str()), (None, "no way"));
    }
}
