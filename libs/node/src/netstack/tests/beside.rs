//! The stack beside the machine's own one: which packets are whose.

use super::*;

/// Feeds one packet to a stack: whether it was the kernel's, and what the stack sends.
fn feed(stack: &Netstack, packet: Option<&[u8]>) -> (bool, Vec<Vec<u8>>) {
    let mut batch = Batch::new();
    let mut machines = Vec::new();
    stack.exchange_beside(
        &mut packet.into_iter(),
        &mut batch,
        Instant::now(),
        Some(&mut machines),
    );
    (
        !machines.is_empty(),
        batch.iter().map(<[u8]>::to_vec).collect(),
    )
}

fn stack(n: u8) -> Netstack {
    let config = StackConfig {
        seed: n.into(),
        ..StackConfig::default()
    };
    let stack = Netstack::new(config, Arc::new(Notify::new()), Instant::now());
    stack.set_addrs(addrs(n));
    stack
}

/// The packet by which a peer asks for a connection.
async fn request(to: SocketAddr) -> Vec<u8> {
    let peer = stack(2);
    let dialling = peer.clone();
    let dial = tokio::spawn(async move { dialling.dial(to, LIMIT).await });
    let packet = loop {
        tokio::task::yield_now().await;
        if let Some(packet) = feed(&peer, None).1.pop() {
            break packet;
        }
    };
    dial.abort();
    packet
}

/// A peer's ping.
fn echo() -> Vec<u8> {
    let mut echo = vec![
        0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 100, 64, 0, 2, 100, 64, 0, 1,
    ];
    echo.extend([8, 0, 0, 0, 0, 1, 0, 1]);
    echo
}

/// Where the flags of TCP are in a packet without options of IP.
fn flags_at(to: SocketAddr) -> usize {
    if to.is_ipv4() { 20 + 13 } else { 40 + 13 }
}

#[tokio::test]
async fn a_request_is_the_machines_only_at_a_port_that_is_left_to_it() {
    const RESET: u8 = 0x04;
    let own = stack(1);
    let _listener = own.listen(80).expect("free");
    for listening in [v4(1, 80), v6(1, 80)] {
        let request = request(listening).await;
        let (machines, answers) = feed(&own, Some(&request));
        assert!(!machines);
        assert_eq!(answers.len(), 1, "it answers");
    }
    for other in [v4(1, 81), v6(1, 81)] {
        let request = request(other).await;
        let (machines, answers) = feed(&own, Some(&request));
        assert!(!machines, "whatever listens there on the machine");
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0][flags_at(other)] & RESET, RESET, "refused");

        let left = own.leave_to_machine(81);
        let (machines, answers) = feed(&own, Some(&request));
        assert!(machines);
        assert!(answers.is_empty(), "whether to refuse is the machine's");
        drop(left);
        assert!(!feed(&own, Some(&request)).0, "taken back");
    }
}

#[tokio::test]
async fn a_request_behind_extension_headers_or_in_a_fragment_is_not_the_machines() {
    let own = stack(1);
    let _listener = own.listen(80).expect("free");
    let request = request(v6(1, 80)).await;
    // Hop-by-hop options and destination options of padding (RFC 8200, 4.3 and 4.6), a fragment
    // header of a whole packet, one of a first fragment (4.5).
    let options = [6, 0, 1, 4, 0, 0, 0, 0];
    let atomic = [6, 0, 0, 0, 0, 0, 0, 1];
    let first = [6, 0, 0, 1, 0, 0, 0, 1];
    for (kind, header) in [(0, options), (60, options), (44, atomic), (44, first)] {
        let mut packet = request.clone();
        packet[6] = kind;
        packet.splice(40..40, header);
        let length = u16::try_from(packet.len() - 40).expect("small");
        packet[4..6].copy_from_slice(&length.to_be_bytes());
        assert!(
            mesh_tunnel::packet::parse(&packet).is_ok(),
            "the packet filter reads it: {kind}"
        );
        assert!(!feed(&own, Some(&packet)).0, "{kind} {header:?}");
    }
}

#[tokio::test]
async fn an_answer_to_the_machines_own_connection_is_the_kernels_whatever_its_port() {
    let own = stack(1);
    let _listener = own.listen(80).expect("free");
    for to in [v4(1, 80), v6(1, 80)] {
        let request = request(to).await;
        // SYN and ACK; ACK alone; RST: none of them opens anything.
        for flags in [0x12, 0x10, 0x04] {
            let mut answer = request.clone();
            answer[flags_at(to)] = flags;
            let (kernels, answers) = feed(&own, Some(&answer));
            assert!(kernels, "{flags:#x}");
            assert!(answers.is_empty());
        }
    }
}

#[tokio::test]
async fn what_is_no_tcp_is_the_kernels_but_for_bound_udp_ports() {
    let own = stack(1);
    let echo = echo();
    let (kernels, answers) = feed(&own, Some(&echo));
    assert!(
        kernels && answers.is_empty(),
        "two answers would be one too many"
    );

    let mut datagram = echo.clone();
    datagram[9] = 17;
    datagram[20..].copy_from_slice(&[0x30, 0, 0, 53, 0, 8, 0, 0]);
    assert!(feed(&own, Some(&datagram)).0);
    let bound = own.bind_udp(53).expect("free");
    assert!(!feed(&own, Some(&datagram)).0);
    drop(bound);
    assert!(feed(&own, Some(&datagram)).0);
}

/// What the driver relies on when it writes them to the device after the stack has let go.
#[tokio::test]
async fn the_machines_packets_are_told_by_their_places_in_order() {
    let own = stack(1);
    let _listener = own.listen(80).expect("free");
    let mine = request(v4(1, 80)).await;
    let machines = echo();
    let (mut batch, mut places) = (Batch::new(), Vec::with_capacity(8));
    let memory = places.as_ptr();
    let orders: [(&[&Vec<u8>], &[usize]); 3] = [
        (&[&machines, &mine, &machines, &mine, &machines], &[0, 2, 4]),
        (&[&mine, &mine], &[]),
        (&[&mine, &machines], &[1]),
    ];
    for (packets, expected) in orders {
        places.clear();
        let mut inbound = packets.iter().map(|packet| packet.as_slice());
        own.exchange_beside(&mut inbound, &mut batch, Instant::now(), Some(&mut places));
        assert_eq!(places, expected);
    }
    assert_eq!(places.as_ptr(), memory, "its memory is used again");
}

#[tokio::test]
async fn a_connection_of_the_stack_stays_its_own_to_the_end() {
    let (own, peer) = (stack(1), stack(2));
    let mut listener = own.listen(80).expect("free");
    let dialling = peer.clone();
    let dial = tokio::spawn(async move { dialling.dial(v4(1, 80), LIMIT).await });
    let mut claimed = 0;
    let mut carry = || {
        let mut to_own: VecDeque<Vec<u8>> = feed(&peer, None).1.into();
        let mut to_peer: VecDeque<Vec<u8>> = feed(&own, None).1.into();
        loop {
            if let Some(packet) = to_own.pop_front() {
                let (kernels, answers) = feed(&own, Some(&packet));
                assert!(!kernels);
                claimed += 1;
                to_peer.extend(answers);
            } else if let Some(packet) = to_peer.pop_front() {
                let (kernels, answers) = feed(&peer, Some(&packet));
                assert!(!kernels);
                to_own.extend(answers);
            } else {
                break;
            }
        }
    };
    while !dial.is_finished() {
        tokio::task::yield_now().await;
        carry();
    }
    let mut out = dial.await.expect("no panic").expect("connected");
    out.write_all(b"hello").await.expect("fits");
    carry();
    let (mut stream, _) = listener.accept().await.expect("a connection");
    // Taking the port back does not take what was opened on it.
    drop(listener);
    let mut got = [0; 5];
    stream.read_exact(&mut got).await.expect("arrived");
    assert_eq!(&got, b"hello");
    out.write_all(b"again").await.expect("fits");
    carry();
    stream.read_exact(&mut got).await.expect("arrived");
    assert_eq!(&got, b"again");
    assert!(claimed >= 4, "{claimed}");
}
