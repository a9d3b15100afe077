//! What a SOCKS5 client may send before it is connected: greeting, login, request, UDP header.
#![no_main]

use deploy_manager::socks::policy::decide;
use deploy_manager::socks::{Access, read_request};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let head = &data[..data.len().min(32 * 1024)];
        client.write_all(head).await.expect("it fits");
        client.shutdown().await.expect("a pipe closes");
        if let Ok((proto, _command, target)) = read_request(server, &Access::OwnUser).await {
            // Without a netmap nothing may be let through, whatever was asked for.
            let refusal = decide(None, &target).expect_err("there is no network");
            drop(proto.reply_error(&refusal.reply()).await);
        }
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("a pipe ends");
        assert!(answer.len() <= 12);
        drop(fast_socks5::parse_udp_request(data).await);
    });
});
