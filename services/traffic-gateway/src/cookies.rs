//! Which cookies of a browser concern whom.
//!
//! A worker's published services live below its console's path, so browsers send them the
//! console's cookies as well; whoever has the session cookie has the session.

use http::header::{COOKIE, Entry};
use http::{HeaderMap, HeaderValue};

/// Takes the sessions of consoles out of `Cookie`; all other cookies stay as they are.
pub(crate) fn drop_console_sessions(headers: &mut HeaderMap) {
    let Entry::Occupied(lines) = headers.entry(COOKIE) else {
        return;
    };
    if !lines.iter().flat_map(cookies).any(is_console_session) {
        return;
    }
    let (name, lines) = lines.remove_entry_mult();
    let kept: Vec<HeaderValue> = lines.filter_map(|line| without_sessions(&line)).collect();
    for line in kept {
        headers.append(name.clone(), line);
    }
}

fn cookies(line: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    line.as_bytes()
        .split(|&b| b == b';')
        .map(<[u8]>::trim_ascii)
}

/// Cockpit names them `cockpit`, and `machine-cockpit+HOST` for another machine behind it.
fn is_console_session(cookie: &[u8]) -> bool {
    let name = cookie.split(|&b| b == b'=').next().unwrap_or_default();
    let name = name.trim_ascii_end();
    name == b"cockpit" || name.starts_with(b"machine-cockpit+")
}

fn without_sessions(line: &HeaderValue) -> Option<HeaderValue> {
    let kept: Vec<&[u8]> = cookies(line)
        .filter(|cookie| !cookie.is_empty() && !is_console_session(cookie))
        .collect();
    if kept.is_empty() {
        return None;
    }
    HeaderValue::from_bytes(&kept.join(&b"; "[..])).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(lines: &[&str]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(COOKIE, HeaderValue::from_str(line).expect("a value"));
        }
        drop_console_sessions(&mut headers);
        let lines = headers.get_all(COOKIE).iter();
        lines
            .map(|line| line.to_str().expect("ASCII").to_owned())
            .collect()
    }

    #[test]
    fn sessions_of_consoles_go_and_other_cookies_stay() {
        let table: [(&[&str], &[&str]); 8] = [
            (&[], &[]),
            (&["cockpit=secret"], &[]),
            (&["a=b; cockpit=secret; c=d=e"], &["a=b; c=d=e"]),
            (&["cockpit =secret;a=b"], &["a=b"]),
            (&["machine-cockpit+10.0.0.7=secret; a=b"], &["a=b"]),
            (&["a=b", "cockpit=secret", "c=d"], &["a=b", "c=d"]),
            (
                &["cockpits=1; my-cockpit=2; machine-cockpit=3; Cockpit=4; x=cockpit"],
                &["cockpits=1; my-cockpit=2; machine-cockpit=3; Cockpit=4; x=cockpit"],
            ),
            (&["untouched=1;as  it=is ;"], &["untouched=1;as  it=is ;"]),
        ];
        for (given, wanted) in table {
            assert_eq!(left(given), wanted, "{given:?}");
        }
    }
}
