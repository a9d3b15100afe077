//! Signals by the names that SSH gives them (RFC 4254, 6.10): without the `SIG`.

use std::str::FromStr;

use nix::sys::signal::Signal;
use russh::Sig;

/// The signal's name without the `SIG`; text from the other side is cut to something printable.
pub(crate) fn name(signal: &Sig) -> String {
    match signal {
        Sig::ABRT => "ABRT".to_owned(),
        Sig::ALRM => "ALRM".to_owned(),
        Sig::FPE => "FPE".to_owned(),
        Sig::HUP => "HUP".to_owned(),
        Sig::ILL => "ILL".to_owned(),
        Sig::INT => "INT".to_owned(),
        Sig::KILL => "KILL".to_owned(),
        Sig::PIPE => "PIPE".to_owned(),
        Sig::QUIT => "QUIT".to_owned(),
        Sig::SEGV => "SEGV".to_owned(),
        Sig::TERM => "TERM".to_owned(),
        Sig::USR1 => "USR1".to_owned(),
        Sig::Custom(other) => other
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .take(16)
            .collect(),
    }
}

/// The system's signal of that name, when it has one.
pub(super) fn to_system(signal: &Sig) -> Option<Signal> {
    Signal::from_str(&format!("SIG{}", name(signal))).ok()
}

/// The number on this system of the signal with this SSH name.
pub(crate) fn number(name: &str) -> Option<u32> {
    let signal = Signal::from_str(&format!("SIG{name}")).ok()?;
    u32::try_from(signal as i32).ok()
}

/// The SSH name of the system's signal with this number.
pub(super) fn from_system(number: i32) -> Sig {
    match Signal::try_from(number) {
        Ok(Signal::SIGABRT) => Sig::ABRT,
        Ok(Signal::SIGALRM) => Sig::ALRM,
        Ok(Signal::SIGFPE) => Sig::FPE,
        Ok(Signal::SIGHUP) => Sig::HUP,
        Ok(Signal::SIGILL) => Sig::ILL,
        Ok(Signal::SIGINT) => Sig::INT,
        Ok(Signal::SIGKILL) => Sig::KILL,
        Ok(Signal::SIGPIPE) => Sig::PIPE,
        Ok(Signal::SIGQUIT) => Sig::QUIT,
        Ok(Signal::SIGSEGV) => Sig::SEGV,
        Ok(Signal::SIGTERM) => Sig::TERM,
        Ok(Signal::SIGUSR1) => Sig::USR1,
        Ok(other) => Sig::Custom(other.as_str().trim_start_matches("SIG").to_owned()),
        Err(_) => Sig::Custom(number.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_keep_their_name_both_ways() {
        for signal in [
            Signal::SIGTERM,
            Signal::SIGKILL,
            Signal::SIGUSR2,
            Signal::SIGBUS,
        ] {
            let ssh = from_system(signal as i32);
            assert_eq!(format!("SIG{}", name(&ssh)), signal.as_str());
            assert_eq!(to_system(&ssh), Some(signal));
        }
        assert_eq!(to_system(&Sig::Custom("NONSENSE".into())), None);
        assert_eq!((number("KILL"), number("NONSENSE")), (Some(9), None));
    }
}
