//! What a node says of itself with each heartbeat: what is wrong that nobody else can see.

use std::fmt;
use std::time::Duration;

/// Something that is wrong and only the node itself sees. Its word is the code of the finding that
/// the node's own status has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Its newest netmap is not on its disk.
    NetmapUnsaved,
    /// Its network device is gone, or not as it should be.
    DeviceFault,
    /// No UDP datagram reaches it.
    UdpBlocked,
    /// Its process has hardly any file descriptors left.
    DescriptorsLow,
}

impl Trouble {
    /// Each of them, the most far-reaching first.
    pub const ALL: [Self; 4] = [
        Self::DeviceFault,
        Self::DescriptorsLow,
        Self::NetmapUnsaved,
        Self::UdpBlocked,
    ];

    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NetmapUnsaved => "netmap-unsaved",
            Self::DeviceFault => "tun-trouble",
            Self::UdpBlocked => "udp-blocked",
            Self::DescriptorsLow => "descriptors-low",
        }
    }

    /// What is wrong with the node, as the end of a sentence that begins with its name.
    pub const fn what(self) -> &'static str {
        match self {
            Self::NetmapUnsaved => {
                "cannot store its netmap, so a restart of it would need the coordinator"
            }
            Self::DeviceFault => "has trouble with its network device",
            Self::UdpBlocked => "gets no UDP datagrams: everything goes through relays",
            Self::DescriptorsLow => {
                "has hardly any file descriptors left: at its limit it takes no new connections"
            }
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of troubles, in one byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Troubles(u8);

impl Troubles {
    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those there are, the most far-reaching first.
    pub fn iter(self) -> impl Iterator<Item = Trouble> {
        Trouble::ALL
            .into_iter()
            .filter(move |trouble| self.0 & trouble.bit() != 0)
    }
}

impl FromIterator<Trouble> for Troubles {
    fn from_iter<I: IntoIterator<Item = Trouble>>(troubles: I) -> Self {
        let bits = troubles.into_iter().map(Trouble::bit);
        Self(bits.fold(0, |all, bit| all | bit))
    }
}

/// The words, one after the other: `netmap-unsaved, udp-blocked`.
impl fmt::Display for Troubles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, trouble) in self.iter().enumerate() {
            let before = if at == 0 { "" } else { ", " };
            write!(f, "{before}{}", trouble.as_str())?;
        }
        Ok(())
    }
}

/// The word for how long a node was on its stored netmap.
const NETMAP_STORED: &str = "netmap-stored=";
/// So many words of a standing are looked at.
const WORDS: usize = 16;

/// What a heartbeat says of its node. On the wire it is text, words with a space between:
/// `udp-blocked netmap-stored=185`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// What is wrong now.
    pub troubles: Troubles,
    /// It started without a coordinator, and was on its stored netmap for so long (in seconds on
    /// the wire). Told until a heartbeat counts.
    pub stored_for: Option<Duration>,
}

impl Standing {
    /// Reads the text of a heartbeat. It may be any: what a later program says, or no program of
    /// ours, counts as not said.
    pub fn read(text: &str) -> Self {
        let words = || text.split(' ').take(WORDS);
        let is_said = |trouble: &Trouble| words().any(|word| word == trouble.as_str());
        let stored = words().find_map(|word| word.strip_prefix(NETMAP_STORED));
        let secs: Option<u32> = stored.and_then(|secs| secs.parse().ok());
        Self {
            troubles: Trouble::ALL.into_iter().filter(is_said).collect(),
            stored_for: secs.map(|secs| Duration::from_secs(secs.into())),
        }
    }
}

/// The text of a heartbeat.
impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for trouble in self.troubles.iter() {
            write!(f, "{space}{}", trouble.as_str())?;
            space = " ";
        }
        match self.stored_for {
            Some(span) => write!(f, "{space}{NETMAP_STORED}{}", span.as_secs()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_is_what_was_written_and_nothing_is_nothing() {
        for bits in 0..16_u8 {
            let troubles = Troubles(bits);
            assert_eq!(troubles.iter().collect::<Troubles>(), troubles);
            for stored_for in [None, Some(Duration::from_secs(185))] {
                let standing = Standing {
                    troubles,
                    stored_for,
                };
                let text = standing.to_string();
                assert_eq!(Standing::read(&text), standing, "{text}");
            }
        }
        assert_eq!(Standing::default().to_string(), "");
        let all = Troubles(15).to_string();
        assert_eq!(
            all,
            "tun-trouble, descriptors-low, netmap-unsaved, udp-blocked"
        );
    }

    #[test]
    fn any_other_text_counts_as_not_said() {
        for text in [
            "a <b> & é",
            "netmap-unsaved,udp-blocked",
            "Udp-Blocked",
            "netmap-stored=",
            "netmap-stored=-1",
            "netmap-stored=99999999999",
            "  ",
        ] {
            assert_eq!(Standing::read(text), Standing::default(), "{text}");
        }
        let mixed = Standing::read("disk-slow é udp-blocked netmap-stored=20 <&>");
        assert_eq!(mixed.to_string(), "udp-blocked netmap-stored=20");
        let late = format!("{}udp-blocked", "x ".repeat(WORDS));
        assert!(Standing::read(&late).troubles.is_empty(), "not read so far");
    }
}
