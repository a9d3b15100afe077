//! Two real Cockpits in a real browser, through the gateway.

use std::time::Duration;

use integration::{Console, Field, Layout};
use mesh_testkit::cockpit::COCKPIT_WS;
use mesh_testkit::{Browser, BrowserOptions, Cockpit, CurlReply, Need, TestUser, needs};

const NEEDED: [Need; 7] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("curl"),
    Need::Program("useradd"),
    Need::Program("chromium"),
    Need::Program("chromedriver"),
    Need::Program(COCKPIT_WS),
];
const SOON: Duration = Duration::from_secs(20);
const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];

#[test]
fn a_browser_uses_two_workers_consoles_at_once() {
    if !needs(&NEEDED) {
        return;
    }
    let user = TestUser::create().expect("user");
    let mut field = Field::start(Layout::Spread, None);
    let mut cockpits = Vec::new();
    for name in WORKERS {
        let host = field.prepare_host(name).expect("host");
        cockpits.push(Cockpit::start(&host, &format!("/{name}/")).expect("Cockpit"));
        field.add_worker(name, "default", &[]);
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

    field.client().clone().enter(|| {
        let rules = vec!["MAP gateway 10.91.0.2".to_owned()];
        let browser = Browser::start(&BrowserOptions {
            resolver_rules: rules,
        })
        .expect("Chromium");

        browser.open(&field.url("/")).expect("the fleet's page");
        browser
            .wait_for_text("body", SOON, |text| {
                WORKERS.iter().all(|name| text.contains(name))
            })
            .expect("both workers on the fleet's page");
        browser.screenshot("fleet").expect("screenshot");

        let consoles = WORKERS.map(|name| Console::new(field.url("/"), name));
        let [first, second] = &consoles;
        first.log_in(&browser, user.name(), user.password());
        browser
            .screenshot("overview-worker-node-1")
            .expect("screenshot");
        first.use_terminal(&browser);

        // In the same browser, so with the same cookies: the second must not end the first.
        second.log_in(&browser, user.name(), user.password());
        second.use_terminal(&browser);
        for console in &consoles {
            console.open_session(&browser);
        }

        // Logging out of one leaves the other.
        first.open_session(&browser);
        first.log_out(&browser);
        first.expect_login_page(&browser);
        second.open_session(&browser);
        browser
            .screenshot("still-logged-in-worker-node-2")
            .expect("screenshot");
    });

    // The bare path crashes Cockpit when it gets there; the gateway answers it by itself.
    for name in WORKERS {
        let reply = field.curl(&format!("/{name}")).expect("curl runs");
        assert!(matches!(reply.status, 301 | 302 | 307 | 308), "{reply:?}");
    }
    for (name, cockpit) in WORKERS.iter().zip(&mut cockpits) {
        let reply = field.curl(&format!("/{name}/ping")).and_then(CurlReply::ok);
        assert!(reply.expect("Cockpit lives").contains("cockpit"));
        assert!(cockpit.is_running(), "Cockpit of {name} crashed");
    }
    field.assert_logs_clean(&[]);
}
