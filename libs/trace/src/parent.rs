//! The `traceparent` of W3C Trace Context, level 1 (section 3.2).

use std::fmt;

use http::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// The header, metadata key and (in capitals) environment variable.
pub const TRACEPARENT: &str = "traceparent";

/// The span that a request was made in, as it came from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace: TraceId,
    span: SpanId,
    flags: TraceFlags,
}

impl TraceParent {
    /// Reads `00-<32 digits>-<16 digits>-<2 digits>`, lower-case hexadecimal; `None` for anything
    /// else. Later versions may carry more at the end (section 3.2.4).
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let dashes = [2, 35, 52].iter().all(|&at| bytes.get(at) == Some(&b'-'));
        if bytes.len() < 55 || !dashes {
            return None;
        }
        let version = hex(bytes.get(..2)?)?;
        let longer = bytes.len() > 55;
        if version == 0xff || (version == 0 && longer) || (longer && bytes[55] != b'-') {
            return None;
        }
        let trace = TraceId::from(hex(bytes.get(3..35)?)?);
        let span = SpanId::from(u64::try_from(hex(bytes.get(36..52)?)?).ok()?);
        let flags = u8::try_from(hex(bytes.get(53..55)?)?).ok()?;
        if trace == TraceId::INVALID || span == SpanId::INVALID {
            return None;
        }
        // Only the flag "sampled" is defined.
        let flags = TraceFlags::new(flags & TraceFlags::SAMPLED.to_u8());
        Some(Self { trace, span, flags })
    }

    /// The parent that a request names; two are none (section 3.2).
    pub fn extract(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all(TRACEPARENT).iter();
        let first = all.next()?;
        if all.next().is_some() {
            return None;
        }
        Self::parse(first.to_str().ok()?)
    }

    pub(crate) fn of(context: &SpanContext) -> Option<Self> {
        context.is_valid().then(|| Self {
            trace: context.trace_id(),
            span: context.span_id(),
            flags: context.trace_flags(),
        })
    }

    pub(crate) fn remote(self) -> SpanContext {
        SpanContext::new(self.trace, self.span, self.flags, true, TraceState::NONE)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sampled = u8::from(self.flags.is_sampled());
        write!(f, "00-{}-{}-{sampled:02x}", self.trace, self.span)
    }
}

/// Lower-case hexadecimal digits, at most 32 of them.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0u128, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some((value << 4) | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_parent_is_written_as_it_was_read() {
        assert_eq!(TraceParent::parse(GOOD).expect("good").to_string(), GOOD);
        let unknown_flags = GOOD.replace("-01", "-ff");
        let read = TraceParent::parse(&unknown_flags).expect("flags are masked");
        assert_eq!(read.to_string(), GOOD);
    }

    #[test]
    fn what_is_no_parent_is_none() {
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920é331-1",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_later_version_may_say_more_and_two_parents_are_none() {
        let later = format!("01{}-more", &GOOD[2..]);
        assert!(TraceParent::parse(&later).is_some());
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert!(TraceParent::extract(&headers).is_some());
        headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert_eq!(TraceParent::extract(&headers), None);
    }
}
