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
        for (at, digit) in text[..16].iter_mut().enumerate() {
            *digit = HEX[usize::from((self.start >> (60 - 4 * at)) as u8 & 15)];
        }
        for (at, digit) in text[17..].iter_mut().enumerate() {
            *digit = HEX[usize::from((count >> (60 - 4 * at)) as u8 & 15)];
        }
        // The count rarely needs more than 8 digits.
        let (head, tail) = text.split_at_mut(17);
        if count <= u64::from(u32::MAX) {
            let mut short = [0; 25];
            short[..17].copy_from_slice(head);
            short[17..].copy_from_slice(&tail[8..]);
            return HeaderValue::from_bytes(&short).expect("hexadecimal digits");
        }
        HeaderValue::from_bytes(&text).expect("hexadecimal digits")
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
