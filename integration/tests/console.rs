//! Two real Cockpits in a real browser, through the gateway.

use std::time::Duration;

use integration::{Field, Layout};
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
const SHELL: &str = "iframe[name=\"cockpit1:localhost/system\"]";
const TERMINAL: &str = "iframe[name=\"cockpit1:localhost/system/terminal\"]";

fn log_in(browser: &Browser, field: &Field, worker: &str, user: &TestUser) {
    browser
        .open(&field.url(&format!("/{worker}/")))
        .expect("the login page");
    browser
        .wait_for("#login-user-input", SOON)
        .expect("the user field");
    browser
        .fill("#login-user-input", user.name())
        .expect("typed");
    browser
        .fill("#login-password-input", user.password())
        .expect("typed");
    browser.click("#login-button").expect("clicked");
    expect_session(browser, worker);
}

/// The overview is there: somebody is logged in.
fn expect_session(browser: &Browser, worker: &str) {
    browser.leave_frames().expect("the page itself");
    browser
        .enter_frame(SHELL, SOON)
        .unwrap_or_else(|error| panic!("no session at {worker}: {error:#}"));
    browser
        .wait_for_text("body", SOON, |text| text.contains("System information"))
        .expect("the overview");
    browser.leave_frames().expect("the page itself");
}

fn expect_login_page(browser: &Browser, field: &Field, worker: &str) {
    browser.leave_frames().expect("the page itself");
    browser
        .open(&field.url(&format!("/{worker}/")))
        .expect("a page");
    browser
        .wait_for("#login-user-input", SOON)
        .expect("the login page");
}

/// Types a sum into the terminal and reads the answer, which comes back over the WebSocket.
fn use_terminal(browser: &Browser, field: &Field, worker: &str) {
    browser
        .open(&field.url(&format!("/{worker}/system/terminal")))
        .expect("the terminal's page");
    browser
        .enter_frame(TERMINAL, SOON)
        .expect("the terminal's frame");
    browser.wait_for(".xterm", SOON).expect("the terminal");
    browser
        .wait_for_text(".xterm-accessibility, .xterm-rows", SOON, |text| {
            text.contains('$')
        })
        .expect("a prompt");
    browser.click(".xterm").expect("clicked");
    browser
        .type_keys("echo answer-$((20+22)) from $(uname -n)\n")
        .expect("typed");
    let answer = format!("answer-42 from {worker}");
    browser
        .wait_for_text(".xterm-accessibility, .xterm-rows", SOON, |text| {
            // A narrow terminal may break the line.
            text.replace('\n', "").contains(&answer) || text.contains(&answer)
        })
        .expect("the answer");
    browser
        .screenshot(&format!("terminal-{worker}"))
        .expect("screenshot");
    browser.leave_frames().expect("the page itself");
}

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

        log_in(&browser, &field, WORKERS[0], &user);
        browser
            .screenshot("overview-worker-node-1")
            .expect("screenshot");
        use_terminal(&browser, &field, WORKERS[0]);

        // In the same browser, so with the same cookies: the second must not end the first.
        log_in(&browser, &field, WORKERS[1], &user);
        use_terminal(&browser, &field, WORKERS[1]);
        for name in WORKERS {
            browser
                .open(&field.url(&format!("/{name}/system")))
                .expect("a page");
            expect_session(&browser, name);
        }

        // Logging out of one leaves the other.
        browser
            .open(&field.url(&format!("/{}/system", WORKERS[0])))
            .expect("a page");
        expect_session(&browser, WORKERS[0]);
        log_out(&browser);
        expect_login_page(&browser, &field, WORKERS[0]);
        browser
            .open(&field.url(&format!("/{}/system", WORKERS[1])))
            .expect("a page");
        expect_session(&browser, WORKERS[1]);
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

/// By Cockpit's session menu.
fn log_out(browser: &Browser) {
    browser.leave_frames().expect("the page itself");
    browser.click("#toggle-menu").expect("the session menu");
    browser
        .wait_for("#logout", SOON)
        .expect("the log-out entry");
    browser.click("#logout").expect("clicked");
    browser
        .wait_for("#login-user-input", SOON)
        .expect("logged out");
}
