//! The engine against a naive model: whatever happens in whatever order, every session ends up
//! with exactly the netmap that looking at all pairs of nodes gives.

#![allow(
    clippy::disallowed_methods,
    reason = "a test needs one real instant to count virtual time from"
)]

#[path = "model/check.rs"]
mod check;
#[path = "model/json.rs"]
mod json;
#[path = "model/ops.rs"]
mod ops;
#[path = "model/world.rs"]
mod world;

use proptest::prelude::*;

use ops::op;
use world::World;

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, ..ProptestConfig::default() })]

    #[test]
    fn every_session_ends_with_the_map_of_the_model(ops in prop::collection::vec(op(), 1..160)) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
        }
        world.everybody_comes_back();
    }
}
