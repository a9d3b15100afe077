//! SOCKS5: published services through it, and nothing else.

use integration::journeys::refusals::{OTHER, Refusals};
use integration::journeys::transfers::{NODE, Transfers};
use integration::journeys::{refusals, transfers};
use integration::{Field, Layout, Server};
use mesh_testkit::needs;

#[test]
fn large_transfers_arrive_whole_beside_others() {
    if !needs(&transfers::NEEDED) {
        return;
    }
    let mut field = Field::start(Layout::Spread, None);
    let transfers = Transfers::install(&mut field);
    field.add_worker(NODE, "default", &[]);
    transfers.publish(&field);
    transfers.large_beside_ten(&field);
    field.assert_logs_clean(&[]);
}

#[test]
fn nothing_outside_the_mesh_is_reached() {
    if !needs(&transfers::NEEDED) || !needs(&refusals::NEEDED) {
        return;
    }
    let mut field = Field::with_networks(Layout::Spread, None, &[OTHER]);
    let host = field.prepare_host(NODE).expect("host");
    let inside = Server::start(Some(&host), NODE, None).expect("server");
    field
        .add_worker(NODE, "default", &[])
        .publish("web", inside.port());
    let refusals = Refusals::install(&mut field, NODE, inside.port());
    refusals.refuse_all(&field);
    field.assert_logs_clean(&[]);
}
