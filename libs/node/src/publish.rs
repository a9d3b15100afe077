//! Published services: inbound overlay connections to a loopback port or a handler.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_types::{Service, ServiceName};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use crate::counters::{Counters, add};
use crate::netstack::{
    LeftToMachine, ListenError, ListenerCloser, Netstack, OverlayListener, OverlayStream,
};

/// How long a target on loopback may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Copied at a time in each direction, in bytes.
const COPY_BYTES: usize = 64 * 1024;

/// Where connections to a service go.
#[derive(Debug, Clone)]
pub enum Target {
    /// To this TCP address of the machine; loopback only.
    Loopback(SocketAddr),
    /// Where the machine is on the overlay through a TUN device, to whatever listens there itself
    /// on the overlay address; elsewhere as [`Target::Loopback`].
    Direct(SocketAddr),
    /// To whoever reads the other end, with the peer's overlay address.
    Handler(mpsc::Sender<(OverlayStream, SocketAddr)>),
}

/// A service and where its connections go.
#[derive(Debug, Clone)]
pub struct Published {
    /// As the coordinator and the peers see it.
    pub service: Service,
    /// What nobody else sees.
    pub target: Target,
}

/// A service cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The target is not on this machine's loopback.
    #[error(
        "{0} is not a loopback address: a node publishes only what listens on the machine itself \
         (use 127.0.0.1:PORT)"
    )]
    NotLoopback(SocketAddr),
    /// Port 0 names nothing.
    #[error("a service needs a port from 1 to 65535")]
    NoPort,
    /// Another service has the overlay port.
    #[error("overlay port {port} is already published as {name}")]
    PortTaken {
        /// The port.
        port: u16,
        /// The service that has it.
        name: ServiceName,
    },
    /// The port cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

impl PublishError {
    /// Whether the node has ended, since it is in no network any more.
    pub fn is_removed(&self) -> bool {
        matches!(self, Self::Listen(ListenError::Removed))
    }
}

struct Entry {
    published: Published,
    /// Held for what its end does.
    serving: Serving,
}

enum Serving {
    /// This node's stack.
    Here { _open: Open },
    /// The machine's own stack.
    Machine { _left: LeftToMachine },
}

/// Closes the port and ends its connections when dropped.
struct Open {
    listener: ListenerCloser,
    task: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        // At once; the task ends when its thread comes to it.
        self.listener.close();
        self.task.abort();
    }
}

/// The services of one node.
pub(crate) struct Services {
    stack: Netstack,
    /// Whether the machine's own stack has the overlay addresses too.
    has_device: bool,
    counters: Arc<Counters>,
    entries: Mutex<BTreeMap<ServiceName, Entry>>,
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

impl Services {
    pub(crate) fn new(stack: Netstack, has_device: bool, counters: Arc<Counters>) -> Self {
        Self {
            stack,
            has_device,
            counters,
            entries: Mutex::new(BTreeMap::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn list(&self) -> Vec<Service> {
        self.lock()
            .values()
            .map(|entry| entry.published.service.clone())
            .collect()
    }

    /// Publishes; a service of the same name is replaced.
    pub(crate) fn add(&self, published: Published) -> Result<(), PublishError> {
        let Published { service, target } = &published;
        if let Target::Loopback(addr) | Target::Direct(addr) = target
            && !addr.ip().is_loopback()
        {
            return Err(PublishError::NotLoopback(*addr));
        }
        if service.port == 0 {
            return Err(PublishError::NoPort);
        }
        let mut entries = self.lock();
        let holder = entries
            .values()
            .find(|entry| entry.published.service.port == service.port);
        if let Some(holder) = holder
            && holder.published.service.name != service.name
        {
            let name = holder.published.service.name.clone();
            return Err(PublishError::PortTaken {
                port: service.port,
                name,
            });
        }
        let name = service.name.clone();
        let port = service.port;
        if self.has_device && matches!(target, Target::Direct(_)) {
            // What it had, it lets go first.
            drop(entries.remove(&name));
            let serving = Serving::Machine {
                _left: self.stack.leave_to_machine(port),
            };
            entries.insert(name, Entry { published, serving });
            return Ok(());
        }
        let connections = Connections {
            name: name.clone(),
            target: target.clone(),
            counters: Arc::clone(&self.counters),
        };
        let same_port = entries.get(&name).is_some_and(|entry| {
            entry.published.service.port == port && matches!(entry.serving, Serving::Here { .. })
        });
        let listener = if same_port {
            // No connection request is refused in between.
            self.stack.take_over(port)?
        } else {
            self.stack.listen(port)?
        };
        drop(entries.remove(&name));
        let closer = listener.closer();
        let task = tokio::spawn(connections.accept_all(listener));
        entries.insert(
            name,
            Entry {
                published,
                serving: Serving::Here {
                    _open: Open {
                        listener: closer,
                        task,
                    },
                },
            },
        );
        Ok(())
    }

    pub(crate) fn remove(&self, name: &ServiceName) -> bool {
        self.lock().remove(name).is_some()
    }

    pub(crate) fn clear(&self) {
        self.lock().clear();
    }
}

struct Connections {
    name: ServiceName,
    target: Target,
    counters: Arc<Counters>,
}

impl Connections {
    /// Owns every connection of the service: they end with it.
    async fn accept_all(self, mut listener: OverlayListener) {
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Some((stream, peer)) = accepted else { break };
                    add(&self.counters.service_connections, 1);
                    tracing::debug!(service = %self.name, %peer, "connection");
                    match &self.target {
                        Target::Loopback(to) | Target::Direct(to) => {
                            open.spawn(forward(stream, *to, self.name.clone()));
                        }
                        Target::Handler(handler) => {
                            if let Err(error) = handler.try_send((stream, peer)) {
                                let (stream, _) = match error {
                                    mpsc::error::TrySendError::Full(refused)
                                    | mpsc::error::TrySendError::Closed(refused) => refused,
                                };
                                tracing::debug!(service = %self.name, "handler takes no more");
                                stream.reset();
                            }
                        }
                    }
                }
                Some(_ended) = open.join_next() => {}
            }
        }
        // Nothing new arrives; what runs may finish until the service goes away.
        while open.join_next().await.is_some() {}
    }
}

async fn forward(mut stream: OverlayStream, to: SocketAddr, name: ServiceName) {
    let mut local = match tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(to)).await {
        Ok(Ok(local)) => local,
        Ok(Err(error)) => {
            tracing::debug!(service = %name, %to, %error, "target does not accept");
            return stream.reset();
        }
        Err(_) => {
            tracing::debug!(service = %name, %to, "target does not accept in time");
            return stream.reset();
        }
    };
    // Its only failure is a socket that is gone already, which the copy notices.
    let _set = local.set_nodelay(true);
    let copied =
        copy_bidirectional_with_sizes(&mut stream, &mut local, COPY_BYTES, COPY_BYTES).await;
    if let Err(error) = copied {
        tracing::debug!(service = %name, %error, "connection broke");
        // A plain end would make a broken transfer look like a whole one.
        stream.reset();
    }
}
