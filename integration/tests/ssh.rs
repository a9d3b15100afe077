//! Commands on workers: a real sshd on one, the agent's own SSH on the other.

use std::time::Duration;

use integration::journeys::commands::{AGENT_NODE, Commands, NEEDED};
use integration::{Field, Layout};
use mesh_testkit::needs;

#[test]
fn commands_run_on_sshd_and_on_the_agents_own_ssh() {
    if !needs(&NEEDED) {
        return;
    }
    let mut field = Field::start(Layout::Spread, None);
    let mut commands = Commands::install(&mut field);
    commands.join(&mut field);
    // Two minutes, while everything else is tried.
    let mut long = field
        .operator()
        .product("deploy-cli")
        .args(["exec", "sleep 120; echo after two minutes", AGENT_NODE])
        .name("long-exec")
        .spawn()
        .expect("starts");

    commands.use_all(&mut field);

    let left = Duration::from_secs(150).saturating_sub(long.started().elapsed());
    let ended = long
        .finish(left)
        .expect("the long command ends")
        .expect_code(0);
    assert!(
        ended.stdout.contains("after two minutes"),
        "{}",
        ended.all()
    );
    assert!(
        ended.elapsed >= Duration::from_secs(120),
        "{:?}",
        ended.elapsed
    );
    field.assert_logs_clean(&[]);
}
