//! Any sequence of packets, in and out, is judged without a fault, and what no rule allows and no
//! flow of our own awaits is not let in.

#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use mesh_tunnel::filter::Filter;
use mesh_tunnel::packet;
use mesh_types::OverlayAddrs;

fuzz_target!(|steps: Vec<(bool, u8, Vec<u8>)>| {
    let mut now = Instant::now();
    let mut filter = Filter::new(7, 16, now);
    filter.set_own(OverlayAddrs {
        v4: [100, 64, 0, 1].into(),
        v6: [0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 1].into(),
    });
    let mut opened = false;
    for (outgoing, seconds, mut bytes) in steps {
        now += Duration::from_secs(u64::from(seconds));
        // No fuzzer guesses an address, so packets are put between the two that matter.
        let at = if outgoing { 12..16 } else { 16..20 };
        if let Some(own) = bytes.get_mut(at) {
            own.copy_from_slice(&[100, 64, 0, 1]);
        }
        let Ok(header) = packet::parse(&bytes) else {
            continue;
        };
        if outgoing {
            filter.note_outgoing(&header, now);
            opened = true;
        } else {
            let admitted = filter.admit(&header, now).is_ok();
            assert!(
                opened || !admitted,
                "nothing is let in before something went out"
            );
        }
        filter.expire(now);
        assert!(filter.flows() <= 33);
    }
});
