//! Faults that are put in on purpose, at the seams between the cores, to show that the checks find
//! them. Each is listed in docs/simulation.md.

use std::fmt;
use std::str::FromStr;

/// One planted fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The coordinator loses one in four updates that are no full ones.
    DropDelta,
    /// The coordinator forgets to say who is gone.
    ForgetRemoval,
    /// A node takes an update that it has had before once more, after newer ones.
    AcceptReplay,
    /// A node keeps its first packet filter.
    SkipFilter,
    /// A node does not find its stored netmap again.
    LoseStoredNetmap,
    /// A full netmap names a node of another network too.
    LeakAcrossNetworks,
    /// A relay goes on serving those who were removed.
    RelayNeverEvicts,
    /// A relay forwards between networks.
    RelayAcrossNetworks,
    /// A node keeps the names of those whom it knows.
    IgnoreRenames,
    /// A node keeps the tunnel to a peer that was removed.
    KeepRemovedPeer,
    /// A node forgets where those were of whom a restarted coordinator has not heard yet.
    ForgetWhereabouts,
    /// A node says that it knows more than it does when it comes back.
    ResumeTooNew,
    /// A restarted coordinator counts volatile facts as if it were the former one.
    SameEpoch,
    /// The coordinator never closes the sessions of broken streams.
    LeakSessions,
    /// A heartbeat counts whatever its time says.
    AcceptSkew,
    /// A node does not tell that its addresses changed.
    KeepEndpoints,
    /// A node takes no direct path: it reads none of the probes that come directly.
    StayOnRelay,
    /// A node's tunnels go on by a relay that is gone.
    ClingToRelay,
    /// A node does nothing about an initiation whose time stamp is not above the last one, as if its
    /// sender's clock could not have gone back.
    IgnoreOldStamps,
    /// The coordinator takes a report of a stream that a newer one has replaced.
    TakeLateReports,
    /// No certificate is renewed.
    NeverRenew,
    /// The coordinator never frees an update that it has sent.
    LeakUpdates,
}

/// What kind of life must find a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// A few minutes in which everything goes wrong.
    Short,
    /// Hours of steady load.
    Soak,
    /// 35 days, of which the nodes sleep most.
    Month,
}

impl Bug {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::DropDelta,
        Self::ForgetRemoval,
        Self::AcceptReplay,
        Self::SkipFilter,
        Self::LoseStoredNetmap,
        Self::LeakAcrossNetworks,
        Self::RelayNeverEvicts,
        Self::RelayAcrossNetworks,
        Self::IgnoreRenames,
        Self::KeepRemovedPeer,
        Self::ForgetWhereabouts,
        Self::ResumeTooNew,
        Self::SameEpoch,
        Self::LeakSessions,
        Self::AcceptSkew,
        Self::KeepEndpoints,
        Self::StayOnRelay,
        Self::ClingToRelay,
        Self::IgnoreOldStamps,
        Self::TakeLateReports,
        Self::NeverRenew,
        Self::LeakUpdates,
    ];

    /// Where it shows.
    pub const fn life(self) -> Life {
        match self {
            Self::LeakUpdates => Life::Soak,
            Self::NeverRenew => Life::Month,
            _ => Life::Short,
        }
    }

    /// Its word on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::DropDelta => "drop-delta",
            Self::ForgetRemoval => "forget-removal",
            Self::AcceptReplay => "accept-replay",
            Self::SkipFilter => "skip-filter",
            Self::LoseStoredNetmap => "lose-stored-netmap",
            Self::LeakAcrossNetworks => "leak-across-networks",
            Self::RelayNeverEvicts => "relay-never-evicts",
            Self::RelayAcrossNetworks => "relay-across-networks",
            Self::IgnoreRenames => "ignore-renames",
            Self::KeepRemovedPeer => "keep-removed-peer",
            Self::ForgetWhereabouts => "forget-whereabouts",
            Self::ResumeTooNew => "resume-too-new",
            Self::SameEpoch => "same-epoch",
            Self::LeakSessions => "leak-sessions",
            Self::AcceptSkew => "accept-skew",
            Self::KeepEndpoints => "keep-endpoints",
            Self::StayOnRelay => "stay-on-relay",
            Self::ClingToRelay => "cling-to-relay",
            Self::IgnoreOldStamps => "ignore-old-stamps",
            Self::TakeLateReports => "take-late-reports",
            Self::NeverRenew => "never-renew",
            Self::LeakUpdates => "leak-updates",
        }
    }
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Bug {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = |bug: &&Self| bug.as_str() == text;
        Self::ALL.iter().find(known).copied().ok_or_else(|| {
            let words: Vec<_> = Self::ALL.iter().map(|bug| bug.as_str()).collect();
            format!("{text} is none of {}", words.join(", "))
        })
    }
}
