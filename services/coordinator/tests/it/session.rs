//! A node's control stream, as tests drive it.

use std::time::Duration;

use mesh_api::model::netmap::Assembler;
use mesh_api::pb;
use mesh_api::pb::control_service_client::ControlServiceClient;
use mesh_api::pb::sync_request::Message as Say;
use mesh_api::pb::sync_response::Message as Hear;
use mesh_types::NetmapUpdate;
use mesh_types::heartbeat::signed_bytes;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::harness::{Member, Mesh, node_ref};

/// How long an answer may take.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// A machine's open control stream.
pub(crate) struct Stream {
    pub(crate) say: mpsc::Sender<pb::SyncRequest>,
    hear: Streaming<pb::SyncResponse>,
    pub(crate) nonce: Vec<u8>,
    assembler: Assembler,
}

impl Stream {
    pub(crate) async fn open(mesh: &Mesh, member: &Member, cursor: Option<pb::Cursor>) -> Self {
        Self::open_on(member.channel(mesh).await, cursor).await
    }

    /// On a connection that is there.
    pub(crate) async fn open_on(channel: Channel, cursor: Option<pb::Cursor>) -> Self {
        let (say, said) = mpsc::channel(16);
        let hello = pb::SyncHello {
            cursor,
            version: "0.1.0".into(),
        };
        say.send(pb::SyncRequest {
            message: Some(Say::Hello(hello)),
        })
        .await
        .expect("room");
        let mut client = ControlServiceClient::new(channel);
        let mut hear = client
            .sync(ReceiverStream::new(said))
            .await
            .expect("syncs")
            .into_inner();
        let Some(Hear::Welcome(welcome)) = next(&mut hear).await else {
            panic!("no welcome first");
        };
        Self {
            say,
            hear,
            nonce: welcome.nonce,
            assembler: Assembler::default(),
        }
    }

    pub(crate) async fn say(&self, message: Say) {
        self.say
            .send(pb::SyncRequest {
                message: Some(message),
            })
            .await
            .expect("room");
    }

    /// The next whole update of the netmap; acknowledgements are passed over.
    pub(crate) async fn update(&mut self) -> NetmapUpdate {
        loop {
            match next(&mut self.hear).await {
                Some(Hear::Netmap(chunk)) => {
                    if let Some(update) = self.assembler.push(chunk).expect("a good chunk") {
                        return update;
                    }
                }
                Some(Hear::HeartbeatAck(_)) => {}
                other => panic!("no update: {other:?}"),
            }
        }
    }

    /// The next acknowledgement; updates are passed over.
    pub(crate) async fn ack(&mut self) -> pb::HeartbeatAck {
        loop {
            match next(&mut self.hear).await {
                Some(Hear::HeartbeatAck(ack)) => return ack,
                Some(Hear::Netmap(_)) => {}
                other => panic!("no acknowledgement: {other:?}"),
            }
        }
    }

    /// The reason of the goodbye that ends the stream.
    pub(crate) async fn goodbye(&mut self) -> pb::sync_goodbye::Reason {
        loop {
            match next(&mut self.hear).await {
                Some(Hear::Goodbye(goodbye)) => return goodbye.reason(),
                Some(_) => {}
                None => panic!("ended without a goodbye"),
            }
        }
    }

    pub(crate) async fn beat(
        &mut self,
        member: &Member,
        body: pb::HeartbeatBody,
    ) -> pb::HeartbeatAck {
        let body = body.encode_to_vec();
        let signature = member
            .machine
            .identity
            .sign(&signed_bytes(&self.nonce, &body))
            .expect("signs");
        self.say(Say::Heartbeat(pb::Heartbeat { body, signature }))
            .await;
        self.ack().await
    }
}

pub(crate) async fn next(hear: &mut Streaming<pb::SyncResponse>) -> Option<Hear> {
    let message = timeout(SOON, hear.message())
        .await
        .expect("something in time");
    message
        .expect("no error")
        .map(|response| response.message.expect("a message"))
}

pub(crate) fn body(mesh: &Mesh, member: &Member, sequence: u64) -> pb::HeartbeatBody {
    use coordinator::Clock as _;

    pb::HeartbeatBody {
        node_id: member.answer.node_id.clone(),
        sequence,
        time: mesh.clock.now().as_micros(),
        status: "fine".into(),
    }
}

pub(crate) async fn state_of(mesh: &Mesh, name: &str) -> pb::NodeState {
    let request = pb::ShowNodeRequest {
        node: node_ref("", name),
    };
    mesh.admin()
        .await
        .show_node(request)
        .await
        .expect("shows")
        .into_inner()
        .state()
}

pub(crate) fn report(services: &[(&str, u32)]) -> pb::NodeReport {
    let service = |(name, port): &(&str, u32)| pb::Service {
        name: (*name).to_owned(),
        kind: pb::ServiceKind::Http.into(),
        port: *port,
    };
    pb::NodeReport {
        services: services.iter().map(service).collect(),
        endpoints: vec![pb::Endpoint {
            addr: vec![192, 0, 2, 1],
            port: 51820,
        }],
        ssh_user: "deploy".into(),
        ..Default::default()
    }
}
