//! Carries encrypted packets between nodes (DERP) and answers STUN.
