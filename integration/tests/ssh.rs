//! Commands on workers: a real sshd on one, the agent's own SSH on the other.

use integration::journeys::commands::{Commands, NEEDED};
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
    let long = commands.start_long(&field);
    commands.use_all(&mut field);
    long.finish();
    commands.change_host_key(&field);
    field.assert_logs_clean(&[]);
}
