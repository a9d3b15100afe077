//! Standard input and output joined to a port of a node, for ssh's `ProxyCommand`.

use std::io::Read as _;

use mesh_api::context::Context;
use mesh_types::NetworkName;
use tokio::io::{self, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::setting::proxy_addr;
use crate::socks::Proxy;

const BUFFER: usize = 64 * 1024;

/// Joins standard input and output to `host:port` through the network's SOCKS5 listener.
///
/// # Errors
///
/// When there is no way to the node, or the connection breaks.
pub async fn run(
    context: &Context,
    network: Option<&str>,
    host: &str,
    port: u16,
) -> anyhow::Result<()> {
    let network: NetworkName = network.unwrap_or(&context.network).parse()?;
    let addr = proxy_addr(context, &network)?;
    join(&Proxy { addr, login: None }, host, port).await
}

/// The same with a proxy that is known already.
pub async fn join(proxy: &Proxy, host: &str, port: u16) -> anyhow::Result<()> {
    let stream = proxy.connect(host, port).await?;
    let (mut from, mut to) = stream.into_split();
    let mut input = input()?;
    let upload = async {
        while let Some(data) = input.recv().await {
            to.write_all(&data?).await?;
        }
        to.shutdown().await
    };
    finish(upload, copy_flushing(&mut from, &mut io::stdout())).await?;
    Ok(())
}

/// Standard input, read by a thread of its own.
///
/// The runtime's own standard input keeps the process from ending until another key is pressed;
/// this thread does not, it ends with the process.
fn input() -> io::Result<mpsc::Receiver<io::Result<Vec<u8>>>> {
    let (pieces, input) = mpsc::channel(4);
    let read = move || {
        let mut stdin = std::io::stdin().lock();
        loop {
            let mut buf = vec![0; BUFFER];
            let piece = match stdin.read(&mut buf) {
                Ok(0) => return,
                Ok(n) => {
                    buf.truncate(n);
                    Ok(buf)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            if pieces.blocking_send(piece).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(read)?;
    Ok(input)
}

/// Ends with the download: what ssh waits for. An ended upload only closes that direction.
async fn finish(
    upload: impl Future<Output = io::Result<()>>,
    download: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    tokio::pin!(upload, download);
    tokio::select! {
        biased;
        done = &mut download => done,
        done = &mut upload => {
            done?;
            download.await
        }
    }
}

/// Standard output is buffered by the runtime; each piece must get out at once.
async fn copy_flushing(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut buf = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buf).await?;
        if n == 0 {
            return to.flush().await;
        }
        to.write_all(&buf[..n]).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_the_download_ends_it_and_the_end_of_the_upload_does_not() {
        let ended = finish(std::future::pending(), async { Ok(()) });
        assert!(ended.await.is_ok());
        let (more, rest) = tokio::sync::oneshot::channel();
        let download = async {
            rest.await.map_err(io::Error::other)?;
            Ok(())
        };
        let upload = async {
            more.send(()).map_err(|()| io::Error::other("gone"))?;
            Ok(())
        };
        assert!(finish(upload, download).await.is_ok());
        let broken = finish(async { Err(io::Error::other("x")) }, std::future::pending());
        assert!(broken.await.is_err());
    }
}
