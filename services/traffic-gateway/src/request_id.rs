//! Ids that tie one request's log lines together, from the browser to the worker.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{HeaderName, HeaderValue};

/// `X-Request-Id`.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Makes ids: a random start and a count, unlike those of any other source.
#[derive(Debug)]
pub struct RequestIds {
    start: u64,
    count: AtomicU64,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self {
            start: RandomState::new().hash_one(0u8),
            count: AtomicU64::new(0),
        }
    }
}

impl RequestIds {
    /// The id that the request has, when it is fit to be logged; a new one otherwise.
    pub fn take_over(&self, given: Option<&HeaderValue>) -> HeaderValue {
        match given {
            Some(given) if is_fit(given.as_bytes()) => given.clone(),
            _ => self.fresh(),
        }
    }

    fn fresh(&self) -> HeaderValue {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let mut text = [b'-'; 33];
        write_hex(&self.start.to_be_bytes(), &mut text[..16]);
        // The count rarely needs more than 8 digits.
        let count = count.to_be_bytes();
        let digits = if count[..4] == [0; 4] {
            &count[4..]
        } else {
            &count[..]
        };
        let end = 17 + 2 * digits.len();
        write_hex(digits, &mut text[17..end]);
        HeaderValue::from_bytes(&text[..end]).expect("hexadecimal digits")
    }
}

fn write_hex(bytes: &[u8], digits: &mut [u8]) {
    for (byte, pair) in bytes.iter().zip(digits.chunks_exact_mut(2)) {
        pair[0] = HEX[usize::from(byte >> 4)];
        pair[1] = HEX[usize::from(byte & 15)];
    }
}

fn is_fit(id: &[u8]) -> bool {
    (1..=128).contains(&id.len())
        && id
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_fit_ids_are_kept() {
        let (ids, others) = (RequestIds::default(), RequestIds::default());
        let mut seen: Vec<HeaderValue> = (0..100).map(|_| ids.take_over(None)).collect();
        seen.extend((0..100).map(|_| others.take_over(None)));
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 200);
        let kept = |text: &'static str| {
            let given = HeaderValue::from_static(text);
            ids.take_over(Some(&given)) == given
        };
        assert!(kept("018f3c1e-7d3a"));
        assert!(!kept(""));
        assert!(!kept("a b"));
        assert!(!kept("a\"b"));
    }
}
