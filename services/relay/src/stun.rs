//! Answering STUN binding requests (RFC 8489).

use mesh_tunnel::stun;
use tokio::net::UdpSocket;

use crate::metrics::RelayMetrics;

/// Answers for ever. Whatever is no request is ignored: the socket is open to everybody.
pub(crate) async fn run(socket: UdpSocket, metrics: RelayMetrics) {
    let mut request = [0; 1500];
    let mut response = [0; stun::MAX_RESPONSE];
    loop {
        let (len, from) = match socket.recv_from(&mut request).await {
            Ok(received) => received,
            Err(error) => {
                // An ICMP error about an earlier answer; it says nothing about the next request.
                tracing::debug!(%error, "STUN socket");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let Ok(transaction) = stun::parse_request(&request[..len]) else {
            continue;
        };
        let len = stun::encode_response(&transaction, from, &mut response);
        metrics.stun_requests.inc();
        if let Err(error) = socket.send_to(&response[..len], from).await {
            tracing::debug!(%error, "STUN answer not sent");
        }
    }
}
