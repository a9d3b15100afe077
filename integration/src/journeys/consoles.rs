//! Two real Cockpits in a real browser, through the gateway.

use std::time::Duration;

use mesh_testkit::cockpit::COCKPIT_WS;
use mesh_testkit::{Browser, BrowserOptions, Cockpit, CurlReply, Need, TestUser};

use super::WORKERS;
use crate::{Console, Field};

/// What the journey needs of the machine.
pub const NEEDED: [Need; 7] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("curl"),
    Need::Program("useradd"),
    Need::Program("chromium"),
    Need::Program("chromedriver"),
    Need::Program(COCKPIT_WS),
];
const SOON: Duration = Duration::from_secs(30);

/// A Cockpit on each worker's host.
#[derive(Debug)]
pub struct Consoles {
    user: TestUser,
    cockpits: Vec<Cockpit>,
}

impl Consoles {
    /// Starts both Cockpits; the workers may join before or after.
    ///
    /// # Panics
    /// When they do not start; so do the checks below when something is not as it must be.
    pub fn install(field: &mut Field) -> Self {
        let cockpits = WORKERS.map(|name| {
            let host = field.prepare_host(name).expect("host");
            Cockpit::start(&host, &format!("/{name}/")).expect("Cockpit")
        });
        Self {
            user: TestUser::create().expect("user"),
            cockpits: cockpits.into(),
        }
    }

    /// Point 3 of the issue: logs in at both in one browser, types in both terminals, goes back,
    /// logs out of one. Screenshots are named with `shots` ahead. Returns at least how many bytes
    /// came from the consoles.
    pub fn use_both(&mut self, field: &Field, shots: &str) -> u64 {
        for name in WORKERS {
            field.wait_for_cockpit(&format!("/{name}/"), SOON);
            let page = field
                .curl(&format!("/{name}/"))
                .and_then(CurlReply::ok)
                .expect("a page");
            assert!(
                page.contains("login-user-input"),
                "not Cockpit's login page:\n{page}"
            );
        }
        let user = &self.user;
        let moved = field.client().enter(|| browse(field, user, shots));

        // The bare path crashes Cockpit when it gets there; the gateway answers it by itself.
        for name in WORKERS {
            let reply = field.curl(&format!("/{name}")).expect("curl runs");
            assert!(matches!(reply.status, 301 | 302 | 307 | 308), "{reply:?}");
        }
        for (name, cockpit) in WORKERS.iter().zip(&mut self.cockpits) {
            let reply = field.curl(&format!("/{name}/ping")).and_then(CurlReply::ok);
            assert!(reply.expect("Cockpit lives").contains("cockpit"));
            assert!(cockpit.is_running(), "Cockpit of {name} crashed");
        }
        moved
    }
}

/// What the present page's parts weigh that were fetched for it (Resource Timing, section 4.3).
fn fetched(browser: &Browser) -> u64 {
    let script = "return performance.getEntriesByType('resource')\
                  .filter(part => part.transferSize > 0)\
                  .reduce((sum, part) => sum + part.encodedBodySize, 0)";
    let bytes = browser.run_script(script, Vec::new()).expect("a script");
    let bytes = bytes.as_u64().unwrap_or_else(|| panic!("no sum: {bytes}"));
    assert!(bytes > 0, "a page without parts");
    bytes
}

fn browse(field: &Field, user: &TestUser, shots: &str) -> u64 {
    let rules = vec!["MAP gateway 10.91.0.2".to_owned()];
    let browser = Browser::start(&BrowserOptions {
        resolver_rules: rules,
    })
    .expect("Chromium");
    let shot = |name: &str| {
        browser
            .screenshot(&format!("{shots}{name}"))
            .expect("screenshot");
    };

    browser.open(&field.url("/")).expect("the fleet's page");
    browser
        .wait_for_text("body", SOON, |text| {
            WORKERS.iter().all(|name| text.contains(name))
        })
        .expect("both workers on the fleet's page");
    shot("fleet");

    let consoles = WORKERS.map(|name| Console::new(field.url("/"), name).shots(shots));
    let [first, second] = &consoles;
    first.log_in(&browser, user.name(), user.password());
    shot("overview-worker-node-1");
    let mut moved = fetched(&browser);
    first.use_terminal(&browser);

    // In the same browser, so with the same cookies: the second must not end the first.
    second.log_in(&browser, user.name(), user.password());
    moved += fetched(&browser);
    second.use_terminal(&browser);
    for console in &consoles {
        console.open_session(&browser);
    }

    // Logging out of one leaves the other.
    first.open_session(&browser);
    first.log_out(&browser);
    first.expect_login_page(&browser);
    second.open_session(&browser);
    shot("still-logged-in-worker-node-2");
    moved
}
