//! Many faults at once: each service tells all of them.

use integration::Cli;

use super::weak::{Files, Weak, faults, weak};
use super::{SERVICES, ran};

/// Many faults of one service, each by a part of its line.
const ALL: &[(Weak, &[&str])] = &[
    (
        weak(
            "coordinator",
            &[
                ("ADMIN__LISTEN", "0.0.0.0:9464"),
                ("STORE__URL", "postgres://mesh@db.example.org/mesh"),
                ("STORE__TLS", "disable"),
                ("STORE__PASSWORD", "changeme"),
                ("BUS__REDIS_URL", "redis://redis.example.org:6379/0"),
                ("BUS__PASSWORD_FILE", "@open"),
                ("SERVER__LISEN", "0.0.0.0:1"),
                ("STORE__MAX_CONNECTIONS", "many"),
            ],
            "",
        ),
        &[
            "admin.listen: ",
            "store.tls: ",
            "store.password (",
            "master_key: ",
            "bus.tls: ",
            "bus.password_file (",
            "did you mean server.listen?",
            "store.max_connections (",
        ],
    ),
    (
        weak(
            "relay",
            &[
                ("ADMIN__LISTEN", "0.0.0.0:9468"),
                ("TOKEN_FILE", "@open"),
                ("STUN__LISTEN", "here"),
                ("SERVER__LISEN", "0.0.0.0:1"),
                ("ADVERTISE__DERP", "relay.example.org"),
            ],
            "",
        ),
        &[
            "admin.listen: ",
            "token_file (",
            "stun.listen (",
            "did you mean server.listen?",
            "advertise.derp: ",
        ],
    ),
    (
        weak(
            "traffic-gateway",
            &[
                ("ADMIN__LISTEN", "0.0.0.0:9465"),
                ("SERVER__LISTEN", "0.0.0.0:8081"),
                ("TOKEN_FILE", "@open"),
                ("LIMIT__CONNECT", "1s"),
                ("LIMITS__IDLE", "soon"),
            ],
            "",
        ),
        &[
            "admin.listen: ",
            "server.listen: ",
            "token_file (",
            "did you mean limits?",
            "limits.idle (",
        ],
    ),
    (
        weak(
            "deploy-manager",
            &[
                ("ADMIN__LISTEN", "0.0.0.0:9466"),
                ("SOCKS__LISTEN", "0.0.0.0:1080"),
                ("SOCKS__USER", "me"),
                ("STATE_DIRR", "/x"),
            ],
            "",
        ),
        &[
            "admin.listen: ",
            "socks.user: ",
            "socks.listen: ",
            "did you mean state_dir?",
        ],
    ),
    (
        weak(
            "worker-agent",
            &[
                ("ADMIN__LISTEN", "0.0.0.0:9467"),
                ("TOKEN_FILE", "@open"),
                ("CONSOLE__COCKPIT", "10.0.0.1:9090"),
                ("SSH__MOD", "sshd"),
                ("SHUTDOWN__GRACE", "long"),
            ],
            "",
        ),
        &[
            "admin.listen: ",
            "token_file (",
            "console.cockpit: ",
            "did you mean ssh.mode?",
            "shutdown.grace (",
        ],
    ),
];

#[test]
fn all_faults_of_a_service_are_listed_at_once() {
    let cli = Cli::new().expect("folders");
    let files = Files::new(&cli);
    let services: Vec<&str> = ALL.iter().map(|(weak, _)| weak.service).collect();
    assert_eq!(services, SERVICES);
    for (weak, expected) in ALL {
        for words in [&["config", "check"][..], &["run"]] {
            let found = faults(weak, &ran(files.spec(&cli, weak, words)));
            assert_eq!(found.len(), expected.len(), "{found:#?}");
            for part in *expected {
                let line = found.iter().find(|line| line.contains(part));
                assert!(line.is_some(), "{part:?} is not in {found:#?}");
            }
        }
    }
}
