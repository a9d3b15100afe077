//! Which tokens there are: joins by these draw on a share of their own. Losing an entry costs a
//! caller its own share and nothing else. Sans-IO.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use mesh_types::TokenId;

/// How many are remembered; the oldest go first.
pub(super) const CAPACITY: usize = 4_096;
/// How often the store is looked into for tokens that are not known.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Tokens that are known to be genuine.
#[derive(Debug, Default)]
pub(super) struct GenuineTokens {
    known: HashSet<TokenId>,
    order: VecDeque<TokenId>,
    looked: Option<Instant>,
}

impl GenuineTokens {
    pub(super) fn contains(&self, token: TokenId) -> bool {
        self.known.contains(&token)
    }

    /// Whether the store may be looked into now; then that is noted.
    pub(super) fn may_look(&mut self, now: Instant) -> bool {
        let rests = |at| now.saturating_duration_since(at) < LOOK_EVERY;
        let may = !self.looked.is_some_and(rests);
        if may {
            self.looked = Some(now);
        }
        may
    }

    pub(super) fn insert(&mut self, token: TokenId) {
        if !self.known.insert(token) {
            return;
        }
        self.order.push_back(token);
        if self.order.len() > CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_looked_into_once_a_second() {
        let mut tokens = GenuineTokens::default();
        let now = Instant::now();
        assert!(tokens.may_look(now));
        assert!(!tokens.may_look(now + LOOK_EVERY / 2));
        assert!(tokens.may_look(now + LOOK_EVERY));
    }

    #[test]
    fn the_newest_are_remembered() {
        let mut tokens = GenuineTokens::default();
        let id = |n: u64| TokenId::from_parts(n, [0; 10]);
        for n in 0..5_000 {
            tokens.insert(id(n));
            tokens.insert(id(n));
        }
        assert!(tokens.contains(id(4_999)) && tokens.contains(id(5_000 - 4_096)));
        assert!(!tokens.contains(id(0)));
        assert_eq!(tokens.known.len(), CAPACITY);
        assert_eq!(tokens.order.len(), CAPACITY);
    }
}
