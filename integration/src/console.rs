//! Cockpit in a browser, as a person uses it.

use std::time::Duration;

use mesh_testkit::Browser;

const SOON: Duration = Duration::from_secs(20);
const SHELL: &str = "iframe[name=\"cockpit1:localhost/system\"]";
const TERMINAL: &str = "iframe[name=\"cockpit1:localhost/system/terminal\"]";
const TERMINAL_TEXT: &str = ".xterm-accessibility, .xterm-rows";

/// One worker's Cockpit behind a gateway.
#[derive(Debug, Clone)]
pub struct Console {
    base: String,
    worker: String,
    shots: String,
}

impl Console {
    /// That of `worker` at the gateway whose URL is `base`, such as `http://gateway:8081`.
    pub fn new(base: impl Into<String>, worker: impl Into<String>) -> Self {
        Self {
            base: base.into(),
            worker: worker.into(),
            shots: String::new(),
        }
    }

    /// The same, with this ahead of the names of its screenshots.
    #[must_use]
    pub fn shots(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.shots);
        self
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{}/{path}", self.base.trim_end_matches('/'), self.worker)
    }

    /// Logs in by the form, and waits for the overview.
    ///
    /// # Panics
    /// When it does not go as it should; so do all of these.
    pub fn log_in(&self, browser: &Browser, user: &str, password: &str) {
        self.expect_login_page(browser);
        browser.fill("#login-user-input", user).expect("typed");
        browser
            .fill("#login-password-input", password)
            .expect("typed");
        browser.click("#login-button").expect("clicked");
        self.expect_session(browser);
    }

    /// Opens the overview, which only somebody who is logged in can see.
    pub fn open_session(&self, browser: &Browser) {
        browser.open(&self.url("system")).expect("a page");
        self.expect_session(browser);
    }

    /// The overview is there: somebody is logged in.
    fn expect_session(&self, browser: &Browser) {
        browser.leave_frames().expect("the page itself");
        browser
            .enter_frame(SHELL, SOON)
            .unwrap_or_else(|error| panic!("no session at {}: {error:#}", self.worker));
        browser
            .wait_for_text("body", SOON, |text| text.contains("System information"))
            .expect("the overview");
        browser.leave_frames().expect("the page itself");
    }

    /// Opens the console, which shows the form to those who are not logged in.
    pub fn expect_login_page(&self, browser: &Browser) {
        browser.leave_frames().expect("the page itself");
        browser.open(&self.url("")).expect("the login page");
        browser
            .wait_for("#login-user-input", SOON)
            .expect("the user field");
    }

    /// Types a sum into the terminal and reads the answer, which comes back over the WebSocket.
    /// The machine's host name must be the worker's name.
    pub fn use_terminal(&self, browser: &Browser) {
        browser
            .open(&self.url("system/terminal"))
            .expect("the terminal's page");
        browser
            .enter_frame(TERMINAL, SOON)
            .expect("the terminal's frame");
        browser.wait_for(".xterm", SOON).expect("the terminal");
        browser
            .wait_for_text(TERMINAL_TEXT, SOON, |text| text.contains('$'))
            .expect("a prompt");
        browser.click(".xterm").expect("clicked");
        browser
            .type_keys("echo answer-$((20+22)) from $(uname -n)\n")
            .expect("typed");
        let answer = format!("answer-42 from {}", self.worker);
        browser
            .wait_for_text(TERMINAL_TEXT, SOON, |text| {
                // A narrow terminal may break the line.
                text.replace('\n', "").contains(&answer) || text.contains(&answer)
            })
            .expect("the answer");
        browser
            .screenshot(&format!("{}terminal-{}", self.shots, self.worker))
            .expect("screenshot");
        browser.leave_frames().expect("the page itself");
    }

    /// By Cockpit's session menu.
    pub fn log_out(&self, browser: &Browser) {
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
}
