//! A SOCKS5 client (RFC 1928, RFC 1929): CONNECT by name or address.

use std::net::IpAddr;

use tokio::io::{self, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

const VERSION: u8 = 5;
const NO_AUTH: u8 = 0;
const USER_PASSWORD: u8 = 2;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;

/// Where the proxy is, and what it asks for.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// `host:port`.
    pub addr: String,
    /// User and password, when it asks for them.
    pub login: Option<Login>,
}

/// User and password for the proxy itself.
#[derive(Clone)]
pub struct Login {
    /// At most 255 bytes.
    pub user: String,
    /// At most 255 bytes.
    pub password: Zeroizing<String>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({:?})", self.user)
    }
}

/// Why there is no connection through the proxy.
#[derive(Debug, thiserror::Error)]
pub enum SocksError {
    /// Nobody answers at the proxy's address.
    #[error(
        "no deploy-manager answers at {addr} (SOCKS5); start one, or say where it is with --socks"
    )]
    NoProxy {
        /// The proxy's address.
        addr: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The proxy ended the connection, or never spoke SOCKS5.
    #[error(
        "what answers at {addr} is no SOCKS5 server, or it closed the connection (it serves its own user and root only)"
    )]
    NotSocks {
        /// The proxy's address.
        addr: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The proxy wants a login, and none was given, or not the right one.
    #[error("the SOCKS5 server at {0} asks for a user and a password: use --socks-auth-file")]
    LoginNeeded(String),
    /// The user or password is longer than SOCKS5 can carry.
    #[error("a SOCKS5 user, password and host name are at most 255 bytes each")]
    TooLong,
    /// The proxy refused the destination.
    #[error("{host}:{port}: {}", reply_text(*code))]
    Refused {
        /// The destination's host.
        host: String,
        /// The destination's port.
        port: u16,
        /// The reply code (RFC 1928, section 6).
        code: u8,
    },
}

fn reply_text(code: u8) -> &'static str {
    match code {
        1 => "the deploy-manager could not do it (see its log)",
        2 => "not a node of this network, or not allowed",
        3 => "the overlay is not up yet (see: mesh status)",
        4 => "no such node, or it cannot be reached now (see: mesh node list)",
        5 => "nothing listens on that port there",
        6 => "no answer in time; the node may be offline (see: mesh node list)",
        7 => "the deploy-manager does not do that command",
        8 => "the deploy-manager does not know that kind of address",
        _ => "refused for an unknown reason",
    }
}

impl Proxy {
    /// A stream to `host:port` through the proxy.
    ///
    /// # Errors
    ///
    /// [`SocksError`].
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, SocksError> {
        let request = request(host, port)?;
        let mut stream = TcpStream::connect(&self.addr)
            .await
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(|source| SocksError::NoProxy {
                addr: self.addr.clone(),
                source,
            })?;
        let code = match self.converse(&mut stream, &request).await {
            Ok(code) => code,
            Err(Fault::Socks(error)) => return Err(error),
            Err(Fault::Io(source)) => {
                let addr = self.addr.clone();
                return Err(SocksError::NotSocks { addr, source });
            }
        };
        if code == 0 {
            Ok(stream)
        } else {
            let host = host.to_owned();
            Err(SocksError::Refused { host, port, code })
        }
    }

    async fn converse(&self, stream: &mut TcpStream, request: &[u8]) -> Result<u8, Fault> {
        let methods: &[u8] = match self.login {
            Some(_) => &[VERSION, 2, NO_AUTH, USER_PASSWORD],
            None => &[VERSION, 1, NO_AUTH],
        };
        stream.write_all(methods).await?;
        let mut chosen = [0; 2];
        stream.read_exact(&mut chosen).await?;
        match (chosen, &self.login) {
            ([VERSION, NO_AUTH], _) => {}
            ([VERSION, USER_PASSWORD], Some(login)) => {
                stream.write_all(&login.encode()?).await?;
                let mut verdict = [0; 2];
                stream.read_exact(&mut verdict).await?;
                if verdict[1] != 0 {
                    return Err(SocksError::LoginNeeded(self.addr.clone()).into());
                }
            }
            ([VERSION, NO_METHOD], _) => {
                return Err(SocksError::LoginNeeded(self.addr.clone()).into());
            }
            _ => return Err(not_socks().into()),
        }
        stream.write_all(request).await?;
        let mut head = [0; 4];
        stream.read_exact(&mut head).await?;
        if head[0] != VERSION {
            return Err(not_socks().into());
        }
        // The bound address says nothing here, but must be read off the stream.
        let length = match head[3] {
            1 => 4,
            4 => 16,
            3 => usize::from(stream.read_u8().await?),
            _ => return Err(not_socks().into()),
        };
        let mut bound = [0; 257];
        stream.read_exact(&mut bound[..length + 2]).await?;
        Ok(head[1])
    }
}

enum Fault {
    Io(io::Error),
    Socks(SocksError),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<SocksError> for Fault {
    fn from(error: SocksError) -> Self {
        Self::Socks(error)
    }
}

fn not_socks() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a SOCKS5 answer")
}

impl Login {
    fn encode(&self) -> Result<Zeroizing<Vec<u8>>, SocksError> {
        let length = |text: &str| u8::try_from(text.len()).map_err(|_| SocksError::TooLong);
        let mut out = Zeroizing::new(vec![1, length(&self.user)?]);
        out.extend(self.user.as_bytes());
        out.push(length(&self.password)?);
        out.extend(self.password.as_bytes());
        Ok(out)
    }
}

fn request(host: &str, port: u16) -> Result<Vec<u8>, SocksError> {
    let mut out = vec![VERSION, CONNECT, 0];
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(v4)) => {
            out.push(1);
            out.extend(v4.octets());
        }
        Ok(IpAddr::V6(v6)) => {
            out.push(4);
            out.extend(v6.octets());
        }
        Err(_) => {
            out.push(3);
            out.push(u8::try_from(host.len()).map_err(|_| SocksError::TooLong)?);
            out.extend(host.as_bytes());
        }
    }
    out.extend(port.to_be_bytes());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A proxy that expects and answers exactly these bytes, in turns.
    async fn script(turns: Vec<(Vec<u8>, Vec<u8>)>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for (expected, answer) in turns {
                let mut got = vec![0; expected.len()];
                stream.read_exact(&mut got).await.unwrap();
                assert_eq!(got, expected);
                stream.write_all(&answer).await.unwrap();
            }
        });
        addr
    }

    fn name_request() -> Vec<u8> {
        [&[5, 1, 0, 3, 3], b"web".as_slice(), &[0, 22]].concat()
    }

    fn ok() -> Vec<u8> {
        vec![5, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    }

    #[tokio::test]
    async fn a_name_is_sent_as_a_name_and_what_follows_the_reply_is_the_stream() {
        let reply = [ok(), b"SSH-2.0".to_vec()].concat();
        let addr = script(vec![(vec![5, 1, 0], vec![5, 0]), (name_request(), reply)]).await;
        let proxy = Proxy { addr, login: None };
        let mut stream = proxy.connect("web", 22).await.unwrap();
        let mut rest = [0; 7];
        stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"SSH-2.0");
    }

    #[tokio::test]
    async fn a_login_is_given_when_the_proxy_asks_for_it() {
        let login = [&[1, 1], b"u".as_slice(), &[2], b"pw"].concat();
        let addr = script(vec![
            (vec![5, 2, 0, 2], vec![5, 2]),
            (login, vec![1, 0]),
            (name_request(), ok()),
        ])
        .await;
        let login = Login {
            user: "u".into(),
            password: "pw".to_owned().into(),
        };
        let proxy = Proxy {
            addr,
            login: Some(login),
        };
        assert!(proxy.connect("web", 22).await.is_ok());
    }

    #[tokio::test]
    async fn each_refusal_says_what_to_do_next() {
        let addr = script(vec![(vec![5, 1, 0], vec![5, 0xff])]).await;
        let error = Proxy { addr, login: None }
            .connect("web", 22)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("--socks-auth-file"), "{error}");

        let refused = vec![5, 5, 0, 1, 0, 0, 0, 0, 0, 0];
        let addr = script(vec![(vec![5, 1, 0], vec![5, 0]), (name_request(), refused)]).await;
        let error = Proxy { addr, login: None }
            .connect("web", 22)
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "web:22: nothing listens on that port there"
        );

        let addr = script(vec![(vec![5, 1, 0], b"HT".to_vec())]).await;
        let error = Proxy { addr, login: None }
            .connect("web", 22)
            .await
            .unwrap_err();
        assert!(matches!(error, SocksError::NotSocks { .. }), "{error}");

        let closed = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let proxy = Proxy {
            addr: closed.to_string(),
            login: None,
        };
        let error = proxy.connect("web", 22).await.unwrap_err();
        assert!(
            error.to_string().contains("no deploy-manager answers"),
            "{error}"
        );
    }

    #[test]
    fn addresses_are_sent_as_addresses() {
        assert_eq!(
            request("100.64.0.1", 80).unwrap(),
            [5, 1, 0, 1, 100, 64, 0, 1, 0, 80]
        );
        assert_eq!(request("::1", 80).unwrap()[..4], [5, 1, 0, 4]);
        assert!(request(&"x".repeat(256), 80).is_err());
    }
}
