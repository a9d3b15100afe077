//! Two real Cockpits in a real browser, through the gateway.

use integration::journeys::WORKERS;
use integration::journeys::consoles::{Consoles, NEEDED};
use integration::{Field, Layout};
use mesh_testkit::needs;

#[test]
fn a_browser_uses_two_workers_consoles_at_once() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::start(Layout::Spread, None);
    let mut consoles = Consoles::install(&mut field);
    for name in WORKERS {
        field.add_worker(name, "default", &[]);
    }
    consoles.use_both(&field, "");
    field.assert_logs_clean(&[]);
}
