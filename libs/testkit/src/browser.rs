//! A real browser: headless Chromium, driven through chromedriver (WebDriver, W3C).
//!
//! Its sockets are those of the thread that starts it, so in a lab all of it belongs into
//! [`crate::Host::enter`] of the client's host.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use fantoccini::actions::{InputSource, KeyAction, KeyActions};
use fantoccini::error::CmdError;
use fantoccini::wd::WindowHandle;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::artefact;
use crate::child::{Child, Spec};
use crate::port::free_tcp_port;

const START_TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);
/// Without these the browser looks for the services of its maker, which tests must not.
const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,800",
];

/// How the browser is to run.
#[derive(Debug, Clone, Default)]
pub struct BrowserOptions {
    /// Rules such as `MAP gateway 10.77.0.1`.
    pub resolver_rules: Vec<String>,
}

/// A browser with an empty profile; closed when dropped.
#[derive(Debug)]
pub struct Browser {
    runtime: Runtime,
    client: Option<Client>,
    driver: Child,
    _profile: TempDir,
}

impl Browser {
    /// Starts chromedriver and Chromium.
    pub fn start(options: &BrowserOptions) -> anyhow::Result<Self> {
        let profile = TempDir::new().context("make a profile directory")?;
        let port = free_tcp_port();
        let driver = Spec::new("chromedriver")
            .arg(format!("--port={port}"))
            .env("HOME", profile.path())
            .env("XDG_CONFIG_HOME", profile.path())
            .env("XDG_CACHE_HOME", profile.path())
            .spawn()?;
        driver.wait_for_line("was started successfully", START_TIMEOUT);
        let mut args: Vec<String> = FLAGS.map(str::to_owned).to_vec();
        args.push(format!(
            "--user-data-dir={}",
            profile.path().join("data").display()
        ));
        if !options.resolver_rules.is_empty() {
            args.push(format!(
                "--host-resolver-rules={}",
                options.resolver_rules.join(",")
            ));
        }
        let mut chromium = json!({ "args": args });
        if let Some(binary) = crate::need::program("chromium") {
            chromium["binary"] = json!(binary);
        }
        let mut wanted = serde_json::Map::new();
        wanted.insert("goog:chromeOptions".to_owned(), chromium);
        wanted.insert("browserName".to_owned(), json!("chrome"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let webdriver = format!("http://127.0.0.1:{port}");
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(wanted);
        let client = runtime.block_on(async {
            tokio::time::timeout(START_TIMEOUT, builder.connect(&webdriver))
                .await
                .context("start Chromium in time")?
                .context("start Chromium")
        })?;
        Ok(Self {
            runtime,
            client: Some(client),
            driver,
            _profile: profile,
        })
    }

    fn client(&self) -> &Client {
        self.client
            .as_ref()
            .expect("the session ends with the browser")
    }

    fn wait<T>(&self, action: impl Future<Output = Result<T, CmdError>>) -> anyhow::Result<T> {
        self.runtime.block_on(async {
            tokio::time::timeout(START_TIMEOUT, action)
                .await
                .context("the browser did not answer in time")?
                .context("the browser refused")
        })
    }

    /// Opens a page.
    pub fn open(&self, url: &str) -> anyhow::Result<()> {
        self.wait(self.client().goto(url))
            .with_context(|| format!("open {url}"))
    }

    /// Loads the page again.
    pub fn reload(&self) -> anyhow::Result<()> {
        self.wait(self.client().refresh())
    }

    /// The page's address.
    pub fn url(&self) -> anyhow::Result<String> {
        Ok(self.wait(self.client().current_url())?.to_string())
    }

    /// The page's title.
    pub fn title(&self) -> anyhow::Result<String> {
        self.wait(self.client().title())
    }

    /// The text that a person sees in the first element that matches the CSS selector; `None`
    /// when nothing matches.
    pub fn text(&self, selector: &str) -> anyhow::Result<Option<String>> {
        let script = "const e = document.querySelector(arguments[0]); \
                      return e === null ? null : (e.innerText ?? e.textContent);";
        let found = self.run_script(script, vec![json!(selector)])?;
        Ok(found.as_str().map(str::to_owned))
    }

    /// Waits until the text of an element is to the taste of `wanted`.
    pub fn wait_for_text(
        &self,
        selector: &str,
        within: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<String> {
        let started = Instant::now();
        loop {
            let seen = self.text(selector);
            if let Ok(Some(text)) = &seen
                && wanted(text)
            {
                return Ok(text.clone());
            }
            if started.elapsed() > within {
                bail!("the text of {selector} is {seen:?} after {within:?}");
            }
            self.pause();
        }
    }

    fn pause(&self) {
        self.runtime
            .block_on(async { tokio::time::sleep(POLL).await });
    }

    /// Waits until an element is there and visible.
    pub fn wait_for(&self, selector: &str, within: Duration) -> anyhow::Result<()> {
        let script = "const e = document.querySelector(arguments[0]); \
                      return e !== null && e.getClientRects().length > 0;";
        let started = Instant::now();
        loop {
            let seen = self.run_script(script, vec![json!(selector)]);
            if matches!(seen, Ok(Value::Bool(true))) {
                return Ok(());
            }
            if started.elapsed() > within {
                let text = self.text("body").ok().flatten().unwrap_or_default();
                bail!("{selector} is not there after {within:?} ({seen:?}); the page says: {text}");
            }
            self.pause();
        }
    }

    /// Clicks an element.
    pub fn click(&self, selector: &str) -> anyhow::Result<()> {
        self.wait(async {
            self.client()
                .find(Locator::Css(selector))
                .await?
                .click()
                .await
        })
        .with_context(|| format!("click {selector}"))
    }

    /// Types into a field.
    pub fn fill(&self, selector: &str, text: &str) -> anyhow::Result<()> {
        self.wait(async {
            let field = self.client().find(Locator::Css(selector)).await?;
            field.clear().await?;
            field.send_keys(text).await
        })
        .with_context(|| format!("fill {selector}"))
    }

    /// Types on the keyboard, wherever the focus is; `\n` is Enter.
    pub fn type_keys(&self, text: &str) -> anyhow::Result<()> {
        let keys = text
            .chars()
            .fold(KeyActions::new("keyboard".to_owned()), |keys, c| {
                // U+E007 is Enter in WebDriver (section 17.4.2).
                let value = if c == '\n' { '\u{e007}' } else { c };
                keys.then(KeyAction::Down { value })
                    .then(KeyAction::Up { value })
            });
        self.wait(self.client().perform_actions(keys))
    }

    /// Goes into a frame of the current page.
    pub fn enter_frame(&self, selector: &str, within: Duration) -> anyhow::Result<()> {
        self.wait_for(selector, within)?;
        self.wait(async {
            self.client()
                .find(Locator::Css(selector))
                .await?
                .enter_frame()
                .await
        })
        .with_context(|| format!("enter {selector}"))
    }

    /// Goes back to the page itself.
    pub fn leave_frames(&self) -> anyhow::Result<()> {
        // `null` is the top-level page, WebDriver section 11.6.
        self.wait(async {
            self.client().enter_parent_frame().await?;
            self.client().enter_parent_frame().await
        })
    }

    /// Runs a script and returns its value.
    pub fn run_script(&self, script: &str, args: Vec<Value>) -> anyhow::Result<Value> {
        self.wait(self.client().execute(script, args))
    }

    /// Opens a new tab and goes to it.
    pub fn new_tab(&self) -> anyhow::Result<WindowHandle> {
        let handle = self.wait(self.client().new_window(true))?.handle;
        self.wait(self.client().switch_to_window(handle.clone()))?;
        Ok(handle)
    }

    /// The current tab.
    pub fn tab(&self) -> anyhow::Result<WindowHandle> {
        self.wait(self.client().window())
    }

    /// Goes to another tab.
    pub fn switch_to(&self, tab: &WindowHandle) -> anyhow::Result<()> {
        self.wait(self.client().switch_to_window(tab.clone()))
    }

    /// Saves what the page looks like as `target/ci/screenshots/<name>.png`.
    pub fn screenshot(&self, name: &str) -> anyhow::Result<PathBuf> {
        let png = self.wait(self.client().screenshot())?;
        let path = artefact::dir("screenshots").join(format!("{name}.png"));
        std::fs::write(&path, png).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            if std::thread::panicking() {
                // The picture tells more than the message; and a browser that hangs does not matter.
                let shot = self.runtime.block_on(async {
                    tokio::time::timeout(Duration::from_secs(5), client.screenshot()).await
                });
                if let Ok(Ok(png)) = shot {
                    let name = format!("failed-{}.png", artefact::test_name());
                    drop(std::fs::write(artefact::dir("screenshots").join(name), png));
                }
            }
            self.runtime.block_on(async {
                drop(tokio::time::timeout(Duration::from_secs(5), client.close()).await);
            });
        }
        drop(self.driver.terminate());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need::{Need, needs};

    #[test]
    fn chromium_opens_a_page_clicks_and_types() {
        if !needs(&[Need::Program("chromium"), Need::Program("chromedriver")]) {
            return;
        }
        let browser = Browser::start(&BrowserOptions::default()).expect("Chromium");
        let page = "data:text/html,<title>kit</title><h1>before</h1><input id=i>\
                    <button onclick=\"document.querySelector('h1').innerText=i.value\">b</button>";
        browser.open(page).expect("page");
        assert_eq!(browser.title().expect("title"), "kit");
        browser.click("#i").expect("click");
        browser.type_keys("after").expect("keys");
        browser.click("button").expect("click");
        let within = Duration::from_secs(5);
        browser
            .wait_for_text("h1", within, |text| text == "after")
            .expect("changed text");
        assert_eq!(browser.text("#missing").expect("script"), None);
        let picture = browser.screenshot("testkit-data-page").expect("screenshot");
        assert!(std::fs::metadata(picture).expect("file").len() > 1000);
    }
}
