//! Standard input and output joined to a port of a node, for ssh's `ProxyCommand`.

use mesh_api::context::Context;
use mesh_types::NetworkName;
use tokio::io::{self, AsyncRead, AsyncWrite, AsyncWriteExt as _};

use crate::setting::proxy_addr;
use crate::socks::Proxy;

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
    let upload = async {
        io::copy(&mut io::stdin(), &mut to).await?;
        to.shutdown().await
    };
    finish(upload, copy_flushing(&mut from, &mut io::stdout())).await?;
    Ok(())
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
    use tokio::io::AsyncReadExt as _;

    let mut buf = vec![0; 64 * 1024];
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
