//! Two real Cockpits in a real browser, through the gateway.

use std::time::Duration;

use integration::journeys::WORKERS;
use integration::journeys::consoles::{Consoles, NEEDED};
use integration::{Field, Layout};
use mesh_testkit::{Browser, BrowserOptions, needs};
use serde_json::json;

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
    the_fleets_page_changes_by_itself(&mut field);
    field.assert_logs_clean(&[]);
}

/// A worker joins and goes while somebody looks at `/`, and is shown without a reload.
fn the_fleets_page_changes_by_itself(field: &mut Field) {
    const SOON: Duration = Duration::from_secs(20);
    const THIRD: &str = "worker-node-3";
    field.client().clone().enter(|| {
        let rules = vec!["MAP gateway 10.91.0.2".to_owned()];
        let browser = Browser::start(&BrowserOptions {
            resolver_rules: rules,
        });
        let browser = browser.expect("Chromium");
        browser.open(&field.url("/")).expect("the fleet's page");
        browser
            .wait_for_text("body", SOON, |text| {
                WORKERS.iter().all(|name| text.contains(name)) && !text.contains(THIRD)
            })
            .expect("two workers");
        let run = |script: &str| browser.run_script(script, Vec::new()).expect("a script");
        run("window.sameDocument = true");
        field.add_worker(THIRD, "default", &[]);
        browser
            .wait_for_text("body", SOON, |text| text.contains(THIRD))
            .expect("the third worker");
        field
            .operator()
            .mesh_ok(&["node", "remove", "--yes", THIRD]);
        browser
            .wait_for_text("body", SOON, |text| !text.contains(THIRD))
            .expect("two workers again");
        assert_eq!(run("return window.sameDocument"), json!(true), "reloaded");
    });
}
