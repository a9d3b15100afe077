//! What goes over the channel of an installation: short lines of text. Whoever may publish there
//! can make us look into the store, and nothing else.

use mesh_types::NetworkId;

use super::{Change, Replica};

/// Every line begins with it; a newer form gets another.
const FORM: &str = "1";

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// A network is at a new version.
    Changed(Change),
    /// Sent to oneself, to see that the way is whole.
    Echo(u64),
}

impl Message {
    /// The line that `from` says.
    pub(super) fn line(self, from: Replica) -> String {
        match self {
            Self::Changed(Change { network, version }) => {
                format!("{FORM} {from:?} changed {network} {version}")
            }
            Self::Echo(number) => format!("{FORM} {from:?} echo {number}"),
        }
    }

    /// Who says what; `None` for lines that we do not understand.
    pub(super) fn parse(line: &[u8]) -> Option<(Replica, Self)> {
        let line = std::str::from_utf8(line.get(..line.len().min(256))?).ok()?;
        let mut words = line.split(' ');
        if words.next()? != FORM {
            return None;
        }
        let from = Replica(u64::from_str_radix(words.next()?, 16).ok()?);
        let message = match words.next()? {
            "changed" => Self::Changed(Change {
                network: words.next()?.parse::<NetworkId>().ok()?,
                version: words.next()?.parse().ok()?,
            }),
            "echo" => Self::Echo(words.next()?.parse().ok()?),
            _ => return None,
        };
        words.next().is_none().then_some((from, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let change = Change {
            network: NetworkId::from_bytes([7; 16]),
            version: u64::MAX,
        };
        for message in [Message::Changed(change), Message::Echo(3)] {
            let line = message.line(Replica(0xabc));
            assert_eq!(
                Message::parse(line.as_bytes()),
                Some((Replica(0xabc), message))
            );
        }
    }

    #[test]
    fn anything_else_is_nothing() {
        let long = format!("1 0 echo 1{}", " ".repeat(1000));
        for bad in [
            "",
            "1",
            "1 0",
            "2 0 echo 1",
            "1 xyz echo 1",
            "1 0 echo",
            "1 0 echo -1",
            "1 0 echo 1 2",
            "1 0 changed x 1",
            "1 0 forget 1",
            &long,
        ] {
            assert_eq!(Message::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(Message::parse(&[0xff, 0xfe]), None);
    }
}
