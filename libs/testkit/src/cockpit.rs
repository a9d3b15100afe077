//! A real Cockpit, without systemd.

use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;

use crate::child::{Child, Spec};
use crate::eventually::eventually;
use crate::http::Curl;
use crate::lab::Host;

/// Where Debian puts Cockpit's web service.
pub const COCKPIT_WS: &str = "/usr/lib/cockpit/cockpit-ws";

/// A running Cockpit. It must run as root to be able to log users in, and refuses root itself.
#[derive(Debug)]
pub struct Cockpit {
    child: Child,
    _config: TempDir,
}

impl Cockpit {
    /// Starts it at 127.0.0.1:9090 of `host`, with `UrlRoot` set to `url_root` (such as
    /// `/worker-node-1/`), and waits until it answers there.
    pub fn start(host: &Host, url_root: &str) -> anyhow::Result<Self> {
        let config = TempDir::new().context("make Cockpit's configuration directory")?;
        let dir = config.path().join("cockpit");
        std::fs::create_dir(&dir)?;
        std::fs::write(
            dir.join("cockpit.conf"),
            format!(
                "[WebService]\n\
                 UrlRoot={url_root}\n\
                 AllowUnencrypted=true\n\
                 ProtocolHeader=X-Forwarded-Proto\n\
                 ForwardedForHeader=X-Forwarded-For\n\
                 LoginTo=false\n"
            ),
        )?;
        let child = Spec::new(COCKPIT_WS)
            .host(host)
            .name(format!("cockpit-{}", host.name()))
            .args(["--no-tls", "-p", "9090", "-a", "127.0.0.1"])
            .env("XDG_CONFIG_DIRS", config.path())
            .spawn()?;
        let ping = format!("http://127.0.0.1:9090/{}/ping", url_root.trim_matches('/'));
        eventually("Cockpit answers", Duration::from_secs(15), || {
            let body = Curl::new().on(Some(host)).get(&ping)?.ok()?;
            anyhow::ensure!(body.contains("cockpit"), "{body}");
            Ok(())
        });
        Ok(Self {
            child,
            _config: config,
        })
    }

    /// Whether it has not crashed.
    pub fn is_running(&mut self) -> bool {
        self.child.is_running()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Lab;
    use crate::need::{Need, needs};
    use crate::user::TestUser;

    #[test]
    fn a_user_logs_in_with_curl() {
        let needed = [
            Need::Root,
            Need::Program("ip"),
            Need::Program("curl"),
            Need::Program("useradd"),
            Need::Program(COCKPIT_WS),
        ];
        if !needs(&needed) {
            return;
        }
        let lab = Lab::new().expect("lab");
        let host = lab.host("worker-node-1").expect("host");
        let user = TestUser::create().expect("user");
        let _cockpit = Cockpit::start(&host, "/worker-node-1/").expect("Cockpit");
        let login = "http://127.0.0.1:9090/worker-node-1/cockpit/login";
        let as_user = |password: &str| {
            Curl::new()
                .on(Some(&host))
                .args(["-u", &format!("{}:{password}", user.name())])
                .get(login)
                .expect("runs")
        };
        let right = as_user(user.password());
        assert_eq!(right.status, 200, "{right:?}");
        assert!(right.body.contains("csrf-token"), "{right:?}");
        assert_eq!(as_user("wrong").status, 401);
    }
}
