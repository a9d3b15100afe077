use proptest::prelude::*;

use super::*;

fn v4(protocol: u8, fragmentation: u16, body: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + body.len()).expect("small");
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragmentation.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend([100, 64, 0, 1, 100, 64, 0, 2]);
    packet.extend(body);
    packet
}

fn v6(next: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(body.len()).expect("small").to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(
        "fd7a:115c:a1e0::1"
            .parse::<Ipv6Addr>()
            .expect("an address")
            .octets(),
    );
    packet.extend(
        "fd7a:115c:a1e0::2"
            .parse::<Ipv6Addr>()
            .expect("an address")
            .octets(),
    );
    packet.extend(body);
    packet
}

fn udp(src: u16, dst: u16) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(src.to_be_bytes());
    body.extend(dst.to_be_bytes());
    body.extend([0, 8, 0, 0]);
    body
}

fn tcp(src: u16, dst: u16, flags: u8) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(src.to_be_bytes());
    body.extend(dst.to_be_bytes());
    body.extend([0; 8]);
    body.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    body
}

#[test]
fn ports_are_read_in_both_families() {
    let wanted = Transport::Udp { src: 7, dst: 53 };
    assert_eq!(
        parse(&v4(UDP, 0x4000, &udp(7, 53))).map(|header| header.transport),
        Ok(wanted)
    );
    assert_eq!(
        parse(&v6(UDP, &udp(7, 53))).map(|header| header.transport),
        Ok(wanted)
    );
    let header = parse(&v4(TCP, 0, &tcp(1, 2, 0x12))).expect("well-formed");
    assert_eq!(
        header.transport,
        Transport::Tcp {
            src: 1,
            dst: 2,
            flags: 0x12
        }
    );
    assert_eq!(IpAddr::from(header.src), IpAddr::V4([100, 64, 0, 1].into()));
}

#[test]
fn every_cut_of_a_packet_is_malformed() {
    for whole in [
        v4(TCP, 0, &tcp(1, 2, 2)),
        v4(UDP, 0, &udp(1, 2)),
        v6(TCP, &tcp(1, 2, 2)),
        v6(
            0,
            &[[UDP, 0, 1, 4, 0, 0, 0, 0].as_slice(), &udp(1, 2)].concat(),
        ),
    ] {
        assert!(parse(&whole).is_ok());
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), Err(InvalidPacket::Malformed));
        }
    }
}

#[test]
fn extension_headers_are_walked_and_endless_chains_refused() {
    let hop_by_hop = [60, 0, 1, 4, 0, 0, 0, 0];
    let destination = [UDP, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let body = [hop_by_hop.as_slice(), &destination, &udp(5, 6)].concat();
    assert_eq!(
        parse(&v6(0, &body)).map(|header| header.transport),
        Ok(Transport::Udp { src: 5, dst: 6 })
    );
    let endless = [0, 0, 1, 4, 0, 0, 0, 0].repeat(9);
    assert_eq!(parse(&v6(0, &endless)), Err(InvalidPacket::Malformed));
}

#[test]
fn fragments_share_an_identity_and_only_the_first_has_ports() {
    let first = parse(&v4(UDP, 0x2000, &udp(7, 53))).expect("well-formed");
    let later = parse(&v4(UDP, 0x0010, &[0; 32])).expect("well-formed");
    assert_eq!(first.transport, Transport::Udp { src: 7, dst: 53 });
    assert_eq!(later.transport, Transport::LaterFragment);
    assert_eq!(first.fragment, later.fragment);
    assert!(first.fragment.is_some());

    let head = |offset: u16| {
        let mut head = vec![UDP, 0];
        head.extend(offset.to_be_bytes());
        head.extend([0, 0, 0, 9]);
        head
    };
    let first = parse(&v6(44, &[head(1), udp(7, 53)].concat())).expect("well-formed");
    let later = parse(&v6(44, &[head(0x100), vec![0; 8]].concat())).expect("well-formed");
    assert_eq!(first.transport, Transport::Udp { src: 7, dst: 53 });
    assert_eq!(later.transport, Transport::LaterFragment);
    assert_eq!(first.fragment, later.fragment);
    let atomic = parse(&v6(44, &[head(0), udp(7, 53)].concat())).expect("well-formed");
    assert_eq!(atomic.fragment, None);
}

#[test]
fn fragments_that_could_rewrite_a_header_are_refused() {
    assert_eq!(
        parse(&v4(TCP, 0x2000, &[0; 8])),
        Err(InvalidPacket::TinyFragment)
    );
    assert_eq!(
        parse(&v4(TCP, 0x0001, &[0; 8])),
        Err(InvalidPacket::TinyFragment)
    );
}

#[test]
fn an_icmp_error_names_the_flow_it_is_about() {
    let mut body = vec![3, 1, 0, 0, 0, 0, 0, 0];
    body.extend(&v4(TCP, 0, &tcp(40_000, 22, 2))[..28]);
    let header = parse(&v4(ICMP, 0, &body)).expect("well-formed");
    let Transport::IcmpError(quoted) = header.transport else {
        panic!("{header:?} should be an error");
    };
    assert_eq!((quoted.src_port, quoted.dst_port), (40_000, 22));
    assert_eq!(quoted.protocol, TCP);
}

#[test]
fn ipv4_mapped_sources_cannot_pretend_to_be_ipv4() {
    let mut packet = v6(UDP, &udp(1, 2));
    packet[8..24].copy_from_slice(&Ipv4Addr::new(100, 64, 0, 1).to_ipv6_mapped().octets());
    assert_eq!(parse(&packet), Err(InvalidPacket::Malformed));
}

proptest! {
    #[test]
    fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn damaged_packets_parse_or_are_refused(
        at in 0usize..60,
        byte in any::<u8>(),
        which in 0usize..4,
    ) {
        let mut packet = [
            v4(TCP, 0, &tcp(1, 2, 2)),
            v6(44, &[[UDP, 0, 0, 1, 0, 0, 0, 9].as_slice(), &udp(1, 2)].concat()),
            v6(0, &[[UDP, 0, 1, 4, 0, 0, 0, 0].as_slice(), &udp(1, 2)].concat()),
            v4(ICMP, 0, &[&[3, 1, 0, 0, 0, 0, 0, 0], v4(UDP, 0, &udp(1, 2)).as_slice()].concat()),
        ][which].clone();
        if let Some(slot) = packet.get_mut(at) {
            *slot = byte;
        }
        let _ = parse(&packet);
    }
}
