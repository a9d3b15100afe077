//! The system's randomness.

use ring::rand::{SecureRandom as _, SystemRandom};

/// 32 fresh bytes; `None` when the system has none to give.
pub(crate) fn seed() -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(bytes)
}

/// 64 fresh bits.
pub(crate) fn word() -> Option<u64> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}
