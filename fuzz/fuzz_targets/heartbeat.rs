//! Any sequence of messages on a node's stream: a heartbeat counts exactly when a simple reading
//! of the rules says so, and what a node reports of itself is read whole or refused.

#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mesh_api::identity::Identity;
use mesh_api::model::heartbeat::HeartbeatFacts;
use mesh_api::model::node::{MAX_REPORTED, NodeReport};
use mesh_api::pb;
use mesh_types::heartbeat::{HeartbeatRefusal, signed_bytes};
use mesh_types::{RelayId, Standing, Timestamp};
use prost::Message as _;

/// The coordinator's own file: the whole of it would bring a database along.
#[allow(
    dead_code,
    reason = "the refusals' words and events are not looked at here"
)]
#[path = "../../services/coordinator/src/app/heartbeat.rs"]
mod heartbeat;

use fuzz::{Step, Steps};
use heartbeat::HeartbeatCheck;

static IDENTITY: LazyLock<Identity> =
    LazyLock::new(|| Identity::generate().expect("the system gives randomness"));

const NODE: [u8; 16] = [1; 16];
const NONCE: [u8; 32] = [2; 32];
const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

// What a step is: a report, a body as the fuzzer made it, or one made here and changed by these.
const REPORT: u8 = 1;
const RAW: u8 = 2;
const BAD_SIGNATURE: u8 = 4;
const OTHER_NODE: u8 = 8;
const EARLY: u8 = 16;

fuzz_target!(init: fuzz::seeds(seeds), |input: &[u8]| {
    let mut check = HeartbeatCheck::new(NODE, IDENTITY.public_key().clone(), NONCE);
    let mut last = 0;
    for step in Steps::new(input).take(32) {
        if step.what & REPORT != 0 {
            report(step.bytes);
        } else {
            beat(step, &mut check, &mut last);
        }
    }
});

fn beat(step: Step<'_>, check: &mut HeartbeatCheck, last: &mut u64) {
    let body = if step.what & RAW != 0 {
        step.bytes.to_vec()
    } else {
        made(step).encode_to_vec()
    };
    let mut signature = IDENTITY
        .sign(&signed_bytes(&NONCE, &body))
        .expect("it signs");
    let genuine = step.what & BAD_SIGNATURE == 0;
    if !genuine {
        let at = usize::from(step.number) % signature.len();
        signature[at] ^= 1;
    }
    let read = pb::HeartbeatBody::decode(&*body).ok();
    let expected = expected(genuine, read.as_ref(), *last);
    let facts = read.map(|body| HeartbeatFacts {
        subject: body.node_id.as_slice().try_into().ok(),
        sequence: body.sequence,
        time: Timestamp::from_micros(body.time),
        standing: standing(&body.status),
    });
    let outcome = accept(check, &body, &signature, facts, *last);
    assert_eq!(outcome, expected, "after {last}: {facts:?}");
    if let Ok(sequence) = outcome {
        *last = sequence;
    }
}

/// A body of which the number is the sequence and, in its lower half, seconds of skew.
fn made(step: Step<'_>) -> pb::HeartbeatBody {
    let skew = Duration::from_secs(u64::from(step.number & 0x3f));
    let early = step.what & EARLY != 0;
    let time = if early {
        NOW.minus(skew)
    } else {
        NOW.plus(skew)
    };
    let node = if step.what & OTHER_NODE == 0 {
        NODE
    } else {
        [9; 16]
    };
    pb::HeartbeatBody {
        node_id: node.to_vec(),
        sequence: u64::from(step.number),
        time: time.as_micros(),
        status: String::from_utf8_lossy(step.bytes).into_owned(),
    }
}

/// What a status says, which may be any text: saying it again says the same.
fn standing(text: &str) -> Standing {
    let standing = Standing::read(text);
    assert_eq!(Standing::read(&standing.to_string()), standing, "{text:?}");
    standing
}

/// The rules, in their order (DESIGN: signature, form, node, sequence, time).
fn expected(
    genuine: bool,
    body: Option<&pb::HeartbeatBody>,
    last: u64,
) -> Result<u64, HeartbeatRefusal> {
    if !genuine {
        return Err(HeartbeatRefusal::BadSignature);
    }
    let body = body.ok_or(HeartbeatRefusal::Malformed)?;
    if body.node_id != NODE {
        return Err(HeartbeatRefusal::WrongNode);
    }
    if body.sequence <= last {
        return Err(HeartbeatRefusal::Replay);
    }
    let skew = i128::from(body.time) - i128::from(NOW.as_micros());
    if skew.unsigned_abs() > 30_000_000 {
        return Err(HeartbeatRefusal::Skew);
    }
    Ok(body.sequence)
}

fn accept(
    check: &mut HeartbeatCheck,
    body: &[u8],
    signature: &[u8],
    facts: Option<HeartbeatFacts>,
    last: u64,
) -> Result<u64, HeartbeatRefusal> {
    match check.accept(body, signature, facts, NOW) {
        // A second one of the same number is let through, once there were some.
        Err(HeartbeatRefusal::Replay)
            if fuzz::planted() && last > 2 && facts.is_some_and(|facts| facts.sequence == last) =>
        {
            Ok(last)
        }
        outcome => outcome,
    }
}

fn report(bytes: &[u8]) {
    let Ok(message) = pb::NodeReport::decode(bytes) else {
        return;
    };
    let Ok(report) = NodeReport::try_from(message) else {
        return;
    };
    let most = [
        report.endpoints.len(),
        report.services.len(),
        report.ssh_host_keys.len(),
        report.derp.len(),
        report.stun.len(),
    ];
    assert!(most.iter().all(|&count| count <= MAX_REPORTED));
    let again = pb::NodeReport::from(report.clone()).encode_to_vec();
    let again = pb::NodeReport::decode(&*again).expect("what was written can be read");
    assert_eq!(NodeReport::try_from(again), Ok(report));
}

fn seeds() -> [(&'static str, Vec<u8>); 3] {
    let report = NodeReport {
        endpoints: vec!["192.0.2.1:51820".parse().expect("an address")],
        home_relay: Some(RelayId::from_bytes([4; 16])),
        ssh_host_keys: vec!["ssh-ed25519 AAAA".to_owned()],
        ssh_user: "root".to_owned(),
        ..NodeReport::default()
    };
    let report = pb::NodeReport::from(report).encode_to_vec();
    let raw = made(Step {
        what: 0,
        number: 3,
        bytes: b"ok",
    });
    let raw = raw.encode_to_vec();
    let ok: &[u8] = b"up";
    [
        (
            "three_beats",
            Steps::write([(0, 1, ok), (0, 2, ok), (EARLY, 3, ok)]),
        ),
        ("report", Steps::write([(REPORT, 0, &*report), (0, 1, ok)])),
        (
            "refused",
            Steps::write([(RAW, 0, &*raw), (BAD_SIGNATURE, 4, ok), (OTHER_NODE, 5, ok)]),
        ),
    ]
}
