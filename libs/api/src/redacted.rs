//! `Debug` for the messages that carry secrets: their type's name and nothing else.

use std::fmt;

use crate::pb;

macro_rules! redacted {
    ($($type:path => $name:literal),* $(,)?) => {
        $(impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!($name, "([redacted])"))
            }
        })*
    };
}

redacted! {
    pb::EnrolRequest => "EnrolRequest",
    pb::CreateTokenResponse => "CreateTokenResponse",
    pb::PermitRejoinResponse => "PermitRejoinResponse",
    pb::SshAuth => "SshAuth",
    pb::ssh_auth::Method => "SshAuth::Method",
}
