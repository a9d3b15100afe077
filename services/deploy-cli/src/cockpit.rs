//! `install-cockpit`: the machine's own packages, then the gateway's prefix.

use mesh_api::context::Context;

use crate::target::Chosen;

/// What runs on each target. Debian and its children only; as root, or by sudo without a password.
pub const SCRIPT: &str = r#"set -e
if [ "$(id -u)" -eq 0 ]; then as_root=""; else as_root="sudo -n"; fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "this machine has no apt-get: install Cockpit by its own package manager" >&2; exit 1
fi
if [ -n "$as_root" ] && ! $as_root true 2>/dev/null; then
    echo "sudo asks for a password here: use --user root, or allow sudo without one" >&2; exit 1
fi
$as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends cockpit
if command -v worker-agent >/dev/null 2>&1; then
    $as_root worker-agent console configure
fi
"#;

/// Where the consoles of the targets are, one line each.
pub fn urls(context: &Context, chosen: &[Chosen], ok: impl Fn(usize) -> bool) -> String {
    let Some(gateway) = context.gateway.as_deref() else {
        return String::new();
    };
    let gateway = gateway.trim_end_matches('/');
    let mut text = String::new();
    for (index, target) in chosen.iter().enumerate() {
        if let Some(node) = &target.node
            && ok(index)
        {
            let prefix = if node.console_prefix.is_empty() {
                format!("/{}/", node.name)
            } else {
                node.console_prefix.clone()
            };
            text.push_str(&format!("{} console: {gateway}{prefix}\n", target.label));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::tests::node;

    #[test]
    fn consoles_are_shown_for_those_that_went_well() {
        let mut context = Context::new(Vec::new(), b"", b"", b"", "default");
        let chosen = |n, name: &str| Chosen {
            label: name.to_owned(),
            node: Some(node(n, name, true)),
        };
        let targets = [chosen(1, "a"), chosen(2, "b")];
        assert_eq!(urls(&context, &targets, |_| true), "");
        context.gateway = Some("http://localhost:8081/".to_owned());
        let text = urls(&context, &targets, |index| index == 0);
        assert_eq!(text, "a console: http://localhost:8081/a/\n");
    }

    #[test]
    fn the_script_is_one_that_a_shell_understands() {
        let checked = std::process::Command::new("sh")
            .args(["-n", "-c", SCRIPT])
            .status();
        assert!(checked.unwrap().success());
    }
}
