//! Which tokens somebody showed with their right secret lately: joins by these draw on a share of
//! their own. Losing an entry costs a caller its own share and nothing else. Sans-IO.

use std::collections::{HashSet, VecDeque};

use mesh_types::TokenId;

/// How many are remembered; the oldest go first.
const CAPACITY: usize = 4_096;

/// Tokens that are known to be genuine.
#[derive(Debug, Default)]
pub(super) struct GenuineTokens {
    known: HashSet<TokenId>,
    order: VecDeque<TokenId>,
}

impl GenuineTokens {
    pub(super) fn contains(&self, token: TokenId) -> bool {
        self.known.contains(&token)
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
