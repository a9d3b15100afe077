//! Durations as people write them: `250ms`, `30s`, `5m`, `1h`, `7d`.
//!
//! For `#[serde(with = "mesh_daemon::config::duration")]` on a [`Duration`].

use std::time::Duration;

use serde::{Deserialize as _, Deserializer, Serializer, de};

const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no duration: write a whole number and a unit, such as 250ms, 30s, 5m or 1h")]
pub struct InvalidDuration(String);

/// Reads a whole number followed by `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// For anything else, and for numbers that do not fit.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    let millis = UNITS
        .iter()
        .find(|(name, _)| *name == unit.trim_start())
        .and_then(|(_, factor)| number.parse::<u64>().ok()?.checked_mul(*factor));
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| InvalidDuration(text.to_owned()))
}

/// The shortest text that [`parse`] reads back; below a millisecond it is cut off.
pub fn format(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (unit, factor) = UNITS
        .into_iter()
        .rev()
        .find(|(_, factor)| millis >= *factor && millis.is_multiple_of(*factor))
        .unwrap_or(("s", 1_000));
    format!("{}{unit}", millis / factor)
}

/// For serde's `with`.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

/// For serde's `with`.
///
/// # Errors
/// When the text is no duration.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_survive_writing_and_reading() {
        for text in [
            "0s", "1ms", "250ms", "1500ms", "30s", "90s", "5m", "1h", "7d",
        ] {
            assert_eq!(format(parse(text).expect(text)), text);
        }
        assert_eq!(parse("120s"), Ok(Duration::from_secs(120)));
        assert_eq!(parse(" 2 h "), Ok(Duration::from_secs(7200)));
    }

    #[test]
    fn what_is_no_duration_is_refused_with_an_example() {
        for text in [
            "",
            "30",
            "s",
            "-1s",
            "1.5s",
            "3 weeks",
            "99999999999999999999s",
        ] {
            let refused = parse(text).expect_err(text).to_string();
            assert!(refused.contains("such as 250ms"), "{refused}");
        }
    }
}
