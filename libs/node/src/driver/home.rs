//! Which relay is home: where peers find this node.

use std::time::Duration;

use mesh_types::RelayId;

use super::derp::LinkState;

/// The home relay: the current one while it is connected and not clearly worse, else the connected
/// one with the lowest latency.
pub(super) fn choose_home<'a>(
    current: Option<RelayId>,
    links: impl Iterator<Item = (RelayId, &'a LinkState)>,
) -> Option<RelayId> {
    let mut best: Option<(RelayId, Duration)> = None;
    let mut held: Option<Duration> = None;
    for (id, state) in links.filter(|(_, state)| state.connected) {
        let latency = state.latency.unwrap_or(Duration::from_secs(1));
        if Some(id) == current {
            held = Some(latency);
        }
        if best.is_none_or(|(_, least)| latency < least) {
            best = Some((id, latency));
        }
    }
    match (held, best) {
        // A third better and at least 10 ms, or every jitter would move the node.
        (Some(held), Some((_, least)))
            if least + Duration::from_millis(10) > held || least * 3 > held * 2 =>
        {
            current
        }
        (_, best) => best.map(|(id, _)| id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(latency_ms: u64) -> LinkState {
        LinkState {
            connected: true,
            latency: Some(Duration::from_millis(latency_ms)),
            ..LinkState::default()
        }
    }

    fn relay(n: u8) -> RelayId {
        RelayId::from_bytes([n; 16])
    }

    #[test]
    fn the_nearest_connected_relay_becomes_home() {
        let (near, far, down) = (up(5), up(50), LinkState::default());
        let links = [(relay(1), &far), (relay(2), &near), (relay(3), &down)];
        assert_eq!(choose_home(None, links.into_iter()), Some(relay(2)));
        assert_eq!(
            choose_home(Some(relay(3)), links.into_iter()),
            Some(relay(2))
        );
    }

    #[test]
    fn home_stays_where_it_is_for_small_gains() {
        let (a, b) = (up(30), up(25));
        let links = [(relay(1), &a), (relay(2), &b)];
        assert_eq!(
            choose_home(Some(relay(1)), links.into_iter()),
            Some(relay(1))
        );
        let (a, b) = (up(90), up(25));
        let links = [(relay(1), &a), (relay(2), &b)];
        assert_eq!(
            choose_home(Some(relay(1)), links.into_iter()),
            Some(relay(2))
        );
    }

    #[test]
    fn without_any_relay_there_is_no_home() {
        assert_eq!(choose_home(Some(relay(1)), std::iter::empty()), None);
    }
}
