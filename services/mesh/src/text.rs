//! How things are said: errors, times, spans.

use std::time::Duration;

use mesh_types::Timestamp;
pub(crate) use mesh_types::time::span;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// An error as one sentence for a person. gRPC statuses are said in the server's words, without
/// the library's frame around them.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let part = match cause.downcast_ref::<tonic::Status>() {
            Some(status) => {
                parts.push(explain_status(status));
                break;
            }
            None => cause.to_string(),
        };
        if parts.last() != Some(&part) {
            parts.push(part);
        }
    }
    parts.join(": ")
}

fn explain_status(status: &tonic::Status) -> String {
    match status.code() {
        tonic::Code::Unavailable if status.message().is_empty() => {
            "the coordinator cannot be reached".to_owned()
        }
        tonic::Code::Unauthenticated => format!(
            "{} (your operator credential is not accepted: run 'mesh login')",
            status.message()
        ),
        _ => status.message().to_owned(),
    }
}

/// `90s`, `30m`, `12h`, `7d`; a bare number is refused.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let split = text
        .len()
        .checked_sub(1)
        .filter(|&at| text.is_char_boundary(at))?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().ok()?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(unit).map(Duration::from_secs)
}

/// RFC 3339 in UTC, for JSON; `None` for the zero that stands for "never".
pub(crate) fn rfc3339(at: i64) -> Option<String> {
    if at == 0 {
        return None;
    }
    let nanos = i128::from(at).checked_mul(1000)?;
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()?
        .format(&Rfc3339)
        .ok()
}

/// `20260131T235959Z`, for file names (ISO 8601, basic format).
pub(crate) fn compact(at: i64) -> String {
    let text = rfc3339(at).unwrap_or_default();
    let seconds = text.split('.').next().unwrap_or_default();
    let digits = seconds.chars().filter(|c| c.is_ascii_digit() || *c == 'T');
    format!("{}Z", digits.collect::<String>())
}

/// How long ago, or how far ahead, in the largest fitting unit.
pub(crate) fn relative(at: i64, now: Timestamp) -> String {
    if at == 0 {
        return "never".to_owned();
    }
    let at = Timestamp::from_micros(at);
    if at <= now {
        format!("{} ago", span(now.since(at)))
    } else {
        format!("in {}", span(at.since(now)))
    }
}

/// This machine's time.
pub(crate) fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("90s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("2d"), Some(Duration::from_secs(172_800)));
        for wrong in ["90", "", "m", "1w", "-1s", "1ü"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_are_told_relative_to_now() {
        let now = Timestamp::from_secs(10_000);
        assert_eq!(
            relative(Timestamp::from_secs(9_990).as_micros(), now),
            "10 s ago"
        );
        assert_eq!(
            relative(Timestamp::from_secs(11_800).as_micros(), now),
            "in 30 min"
        );
        assert_eq!(relative(0, now), "never");
    }

    #[test]
    fn a_time_fits_a_file_name() {
        let at = Timestamp::from_secs(951_782_400).as_micros() + 5;
        assert_eq!(compact(at), "20000229T000000Z");
    }

    #[test]
    fn a_status_speaks_in_the_servers_words() {
        let error =
            anyhow::Error::new(tonic::Status::not_found("there is no node x")).context("show node");
        assert_eq!(explain(&error), "show node: there is no node x");
    }
}
