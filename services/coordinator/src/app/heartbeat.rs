//! Whether a heartbeat counts. Sans-IO; one [`HeartbeatCheck`] per stream.

use std::collections::HashMap;
use std::time::Duration;

use mesh_api::identity::verify;
use mesh_api::model::heartbeat::HeartbeatFacts;
use mesh_types::heartbeat::{HeartbeatRefusal, MAX_SKEW_SECS, signed_bytes};
use mesh_types::{IdentityPublicKey, Timestamp};

/// The state of one stream's heartbeats.
#[derive(Debug)]
pub(crate) struct HeartbeatCheck {
    subject: [u8; 16],
    key: IdentityPublicKey,
    nonce: [u8; 32],
    last_sequence: u64,
}

impl HeartbeatCheck {
    /// For the stream that was opened with this nonce.
    pub(crate) fn new(subject: [u8; 16], key: IdentityPublicKey, nonce: [u8; 32]) -> Self {
        Self {
            subject,
            key,
            nonce,
            last_sequence: 0,
        }
    }

    /// Accepts the heartbeat or says why not. `facts` is the body as it was read, or `None` when
    /// it cannot be read; it is looked at only when the signature holds.
    pub(crate) fn accept(
        &mut self,
        body: &[u8],
        signature: &[u8],
        facts: Option<HeartbeatFacts>,
        now: Timestamp,
    ) -> Result<u64, HeartbeatRefusal> {
        if !verify(&self.key, &signed_bytes(&self.nonce, body), signature) {
            return Err(HeartbeatRefusal::BadSignature);
        }
        let facts = facts.ok_or(HeartbeatRefusal::Malformed)?;
        if facts.subject != Some(self.subject) {
            return Err(HeartbeatRefusal::WrongNode);
        }
        if facts.sequence <= self.last_sequence {
            return Err(HeartbeatRefusal::Replay);
        }
        let skew = facts.time.since(now).max(now.since(facts.time));
        if skew > Duration::from_secs(MAX_SKEW_SECS) {
            return Err(HeartbeatRefusal::Skew);
        }
        self.last_sequence = facts.sequence;
        Ok(facts.sequence)
    }
}

/// The word of a refusal on the wire.
pub(crate) const fn refusal_word(refusal: HeartbeatRefusal) -> &'static str {
    match refusal {
        HeartbeatRefusal::Replay => "replay",
        HeartbeatRefusal::Skew => "skew",
        HeartbeatRefusal::WrongNode => "wrong-node",
        HeartbeatRefusal::BadSignature => "bad-signature",
        HeartbeatRefusal::Malformed => "malformed",
    }
}

/// How long a node and reason stay quiet after an event.
const QUIET: Duration = Duration::from_secs(60);
/// How many pairs are remembered at most.
const CAPACITY: usize = 10_000;

/// Lets at most one event a minute through for each node and reason, and knows whose end of it is
/// to be told.
#[derive(Debug, Default)]
pub(crate) struct RefusalEvents {
    last: HashMap<([u8; 16], HeartbeatRefusal), Told>,
}

/// An event that was let through.
#[derive(Debug)]
struct Told {
    at: Timestamp,
    /// No heartbeat was accepted since.
    is_open: bool,
}

impl RefusalEvents {
    /// Whether this refusal becomes an event.
    pub(crate) fn admit(
        &mut self,
        subject: [u8; 16],
        refusal: HeartbeatRefusal,
        now: Timestamp,
    ) -> bool {
        if self.last.len() >= CAPACITY {
            self.last.retain(|_, told| now.since(told.at) < QUIET);
        }
        let quiet = self
            .last
            .get(&(subject, refusal))
            .is_some_and(|told| now.since(told.at) < QUIET);
        if quiet || self.last.len() >= CAPACITY {
            return false;
        }
        let told = Told {
            at: now,
            is_open: true,
        };
        self.last.insert((subject, refusal), told);
        true
    }

    /// A heartbeat counts: answers why those before it were told not to, when that it is over was
    /// not told yet.
    pub(crate) fn over(&mut self, subject: [u8; 16]) -> Option<HeartbeatRefusal> {
        if self.last.is_empty() {
            return None;
        }
        let mut over = None;
        for refusal in HeartbeatRefusal::ALL {
            if let Some(told) = self.last.get_mut(&(subject, refusal))
                && told.is_open
            {
                told.is_open = false;
                over = Some(refusal);
            }
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::identity::Identity;
    use mesh_types::Standing;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
    const NODE: [u8; 16] = [1; 16];
    const NONCE: [u8; 32] = [2; 32];

    fn facts(sequence: u64) -> HeartbeatFacts {
        HeartbeatFacts {
            subject: Some(NODE),
            sequence,
            time: NOW,
            standing: Standing::default(),
        }
    }

    fn stream() -> (Identity, HeartbeatCheck) {
        let identity = Identity::generate().expect("a key");
        let check = HeartbeatCheck::new(NODE, identity.public_key().clone(), NONCE);
        (identity, check)
    }

    fn signed(identity: &Identity, nonce: &[u8], body: &[u8]) -> Vec<u8> {
        identity.sign(&signed_bytes(nonce, body)).expect("signs")
    }

    #[test]
    fn rising_sequences_count_and_repeated_ones_are_replays() {
        let (identity, mut check) = stream();
        let signature = signed(&identity, &NONCE, b"body");
        let mut beat = |n| check.accept(b"body", &signature, Some(facts(n)), NOW);
        assert_eq!(beat(1), Ok(1));
        assert_eq!(beat(1), Err(HeartbeatRefusal::Replay));
        assert_eq!(beat(5), Ok(5));
        assert_eq!(beat(4), Err(HeartbeatRefusal::Replay));
        assert_eq!(beat(0), Err(HeartbeatRefusal::Replay));
    }

    #[test]
    fn changed_bytes_another_nonce_or_another_key_are_bad_signatures() {
        let (identity, mut check) = stream();
        let other = Identity::generate().expect("a key");
        for (body, signature) in [
            (b"other".as_slice(), signed(&identity, &NONCE, b"body")),
            (b"body", signed(&identity, &[3; 32], b"body")),
            (b"body", signed(&other, &NONCE, b"body")),
            (b"body", b"junk".to_vec()),
        ] {
            let refused = check.accept(body, &signature, Some(facts(1)), NOW);
            assert_eq!(refused, Err(HeartbeatRefusal::BadSignature));
        }
    }

    #[test]
    fn thirty_seconds_of_skew_pass_and_more_do_not() {
        let (identity, mut check) = stream();
        let signature = signed(&identity, &NONCE, b"body");
        let mut at = |sequence, time| {
            let facts = HeartbeatFacts {
                time,
                ..facts(sequence)
            };
            check.accept(b"body", &signature, Some(facts), NOW)
        };
        let (limit, over) = (Duration::from_secs(30), Duration::from_micros(30_000_001));
        assert_eq!(at(1, NOW.plus(limit)), Ok(1));
        assert_eq!(at(2, NOW.minus(limit)), Ok(2));
        assert_eq!(at(3, NOW.plus(over)), Err(HeartbeatRefusal::Skew));
        assert_eq!(at(3, NOW.minus(over)), Err(HeartbeatRefusal::Skew));
        assert_eq!(
            at(3, NOW),
            Ok(3),
            "a refused one uses no sequence number up"
        );
    }

    #[test]
    fn another_node_or_an_unreadable_body_has_its_own_reason() {
        let (identity, mut check) = stream();
        let signature = signed(&identity, &NONCE, b"body");
        let other = HeartbeatFacts {
            subject: Some([9; 16]),
            ..facts(1)
        };
        let refused = check.accept(b"body", &signature, Some(other), NOW);
        assert_eq!(refused, Err(HeartbeatRefusal::WrongNode));
        let refused = check.accept(b"body", &signature, None, NOW);
        assert_eq!(refused, Err(HeartbeatRefusal::Malformed));
    }

    #[test]
    fn a_node_and_reason_make_at_most_one_event_a_minute() {
        let mut events = RefusalEvents::default();
        assert!(events.admit(NODE, HeartbeatRefusal::Skew, NOW));
        assert!(!events.admit(
            NODE,
            HeartbeatRefusal::Skew,
            NOW.plus(Duration::from_secs(59))
        ));
        assert!(events.admit(NODE, HeartbeatRefusal::Replay, NOW));
        assert!(events.admit([9; 16], HeartbeatRefusal::Skew, NOW));
        assert!(events.admit(NODE, HeartbeatRefusal::Skew, NOW.plus(QUIET)));
    }

    #[test]
    fn the_first_heartbeat_that_counts_ends_what_was_told_once() {
        let mut events = RefusalEvents::default();
        assert_eq!(events.over(NODE), None, "nothing was refused");
        events.admit(NODE, HeartbeatRefusal::Skew, NOW);
        assert_eq!(events.over([9; 16]), None, "another node");
        assert_eq!(events.over(NODE), Some(HeartbeatRefusal::Skew));
        assert_eq!(events.over(NODE), None);
        // Turn by turn it stays at one a minute.
        assert!(!events.admit(NODE, HeartbeatRefusal::Skew, NOW.plus(QUIET / 2)));
        assert_eq!(events.over(NODE), None);
        assert!(events.admit(NODE, HeartbeatRefusal::Skew, NOW.plus(QUIET)));
        assert_eq!(events.over(NODE), Some(HeartbeatRefusal::Skew));
    }
}
