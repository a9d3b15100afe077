//! What the gateway answers itself: the page of the fleet, and errors that a person understands.
//!
//! Each comes as a page, as plain text or as JSON, whichever the client asks for.

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use crate::fleet::Snapshot;

const STYLE: &str = include_str!("pages/style.css");
const FLEET: &str = include_str!("pages/fleet.html");
const FLEET_SCRIPT: &str = include_str!("pages/fleet.js");
const PROBLEM: &str = include_str!("pages/problem.html");

/// The form a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A browser.
    Html,
    /// A program.
    Json,
    /// A terminal.
    Text,
}

impl Form {
    /// What the `Accept` header asks for: whichever of HTML and JSON it names first, text for
    /// whoever names neither.
    pub fn wanted(headers: &HeaderMap) -> Self {
        let accept = headers.get_all(ACCEPT).iter();
        for range in accept.flat_map(|value| value.as_bytes().split(|&b| b == b',')) {
            let kind = range.split(|&b| b == b';').next().unwrap_or_default();
            let kind = kind.trim_ascii();
            if kind.eq_ignore_ascii_case(b"text/html")
                || kind.eq_ignore_ascii_case(b"application/xhtml+xml")
            {
                return Self::Html;
            }
            if kind.eq_ignore_ascii_case(b"application/json") {
                return Self::Json;
            }
            if kind.eq_ignore_ascii_case(b"text/plain") {
                return Self::Text;
            }
        }
        Self::Text
    }

    const fn content_type(self) -> &'static str {
        match self {
            Self::Html => "text/html; charset=utf-8",
            Self::Json => "application/json",
            Self::Text => "text/plain; charset=utf-8",
        }
    }
}

/// Something that a request cannot have, told to a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// For programs: one word, stable.
    pub word: &'static str,
    /// What is the matter, in a few words.
    pub title: String,
    /// What is the matter, in a sentence.
    pub message: String,
    /// What to do next; may be empty.
    pub advice: String,
}

impl Problem {
    /// The answer in the form that is wanted.
    pub fn response(&self, form: Form, request_id: &HeaderValue) -> Response<Bytes> {
        let id = request_id.to_str().unwrap_or_default();
        let body = match form {
            Form::Html => self.html(id),
            Form::Json => self.json(id),
            Form::Text => self.text(),
        };
        let mut response = page(self.status, form, body);
        if form == Form::Html {
            set(
                &mut response,
                CONTENT_SECURITY_POLICY.as_str(),
                &policy(&nonce_free()),
            );
        }
        response
    }

    fn json(&self, id: &str) -> String {
        let json = serde_json::json!({
            "version": 1,
            "status": self.status.as_u16(),
            "error": self.word,
            "message": self.message,
            "advice": self.advice,
            "request_id": id,
        });
        format!("{json}\n")
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{} {}: {}\n",
            self.status.as_u16(),
            self.title,
            self.message
        );
        if !self.advice.is_empty() {
            text.push_str(&self.advice);
            text.push('\n');
        }
        text
    }

    fn html(&self, id: &str) -> String {
        fill(
            PROBLEM,
            &[
                ("style", STYLE),
                ("status", self.status.as_str()),
                ("title", &escaped(&self.title)),
                ("message", &escaped(&self.message)),
                ("advice", &marked(&self.advice)),
                ("id", &escaped(id)),
            ],
        )
    }
}

/// The page of the fleet in the form that is wanted. `base` is the gateway's URL as the client
/// knows it, without its last slash; `nonce` is random.
pub fn fleet(snapshot: &Snapshot, form: Form, base: &str, nonce: &str) -> Response<Bytes> {
    let body = match form {
        Form::Json => format!("{}\n", snapshot.fleet.json()),
        Form::Text => snapshot.fleet.text(base),
        Form::Html => {
            let json = String::from_utf8_lossy(&snapshot.json);
            let mut plain = String::new();
            for node in &snapshot.fleet.nodes {
                let name = escaped(&node.name);
                match &node.url {
                    Some(url) => {
                        let url = escaped(url);
                        write!(
                            plain,
                            "<li><a href=\"{url}\">{name}</a>: {}</li>",
                            node.state
                        )
                    }
                    None => write!(plain, "<li>{name}: {}</li>", node.state),
                }
                .expect("writing to a String cannot fail");
            }
            fill(
                FLEET,
                &[
                    ("style", STYLE),
                    ("script", FLEET_SCRIPT),
                    ("nonce", nonce),
                    ("plain", &plain),
                    // Inside a script element only "<" can end it.
                    ("fleet", &json.replace('<', "\\u003c")),
                ],
            )
        }
    };
    let mut response = page(StatusCode::OK, form, body);
    if form == Form::Html {
        set(
            &mut response,
            CONTENT_SECURITY_POLICY.as_str(),
            &policy(nonce),
        );
    }
    response
}

fn page(status: StatusCode, form: Form, body: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    for (name, value) in [
        (CONTENT_TYPE, form.content_type()),
        (CACHE_CONTROL, "no-store"),
        (VARY, "accept"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "same-origin"),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

fn set(response: &mut Response<Bytes>, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// A page that runs no script has a nonce that nobody knows.
fn nonce_free() -> String {
    "none".to_owned()
}

fn policy(nonce: &str) -> String {
    let script = match nonce {
        "none" => "'none'".to_owned(),
        nonce => format!("'nonce-{nonce}'"),
    };
    format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src {script}; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
}

/// `{{name}}` replaced by its text, each once and in one pass, so that texts are never templates.
fn fill(template: &str, texts: &[(&str, &str)]) -> String {
    let mut page = String::with_capacity(template.len() + STYLE.len() + 4096);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        page.push_str(before);
        let Some((name, after)) = after.split_once("}}") else {
            rest = after;
            break;
        };
        let text = texts.iter().find(|(known, _)| *known == name);
        page.push_str(text.map_or("", |(_, text)| text));
        rest = after;
    }
    page.push_str(rest);
    page
}

/// The text with the five characters that mean something in HTML written out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// Escaped, with what stands between single quotes shown as something to type.
fn marked(text: &str) -> String {
    let mut out = String::new();
    for (at, part) in text.split('\'').enumerate() {
        if at % 2 == 1 {
            write!(out, "<code>{}</code>", escaped(part)).expect("writing to a String cannot fail");
        } else {
            out.push_str(&escaped(part));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::tests::fleet as sample;

    fn accept(value: &'static str) -> Form {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(value));
        Form::wanted(&headers)
    }

    #[test]
    fn browsers_programs_and_terminals_get_what_they_ask_for() {
        assert_eq!(
            accept("text/html,application/xhtml+xml,*/*;q=0.8"),
            Form::Html
        );
        assert_eq!(accept("application/json"), Form::Json);
        assert_eq!(accept("application/json, text/html"), Form::Json);
        assert_eq!(accept("*/*"), Form::Text);
        assert_eq!(accept("text/plain"), Form::Text);
        assert_eq!(Form::wanted(&HeaderMap::new()), Form::Text);
    }

    fn problem() -> Problem {
        Problem {
            status: StatusCode::NOT_FOUND,
            word: "unknown-node",
            title: "No such worker".into(),
            message: "there is no <script>alert(1)</script>{{style}}".into(),
            advice: "type 'mesh node list'".into(),
        }
    }

    #[test]
    fn a_problem_cannot_bring_markup_along() {
        let id = HeaderValue::from_static("abc");
        let response = problem().response(Form::Html, &id);
        let page = String::from_utf8(response.body().to_vec()).expect("UTF-8");
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("&lt;script&gt;"));
        assert_eq!(page.matches(STYLE).count(), 1);
        assert!(page.contains("<code>mesh node list</code>"));
        let policy = response.headers()["content-security-policy"]
            .to_str()
            .expect("ASCII");
        assert!(policy.contains("script-src 'none'"), "{policy}");
    }

    #[test]
    fn a_problem_for_a_program_has_a_word_and_the_request_id() {
        let id = HeaderValue::from_static("abc");
        let response = problem().response(Form::Json, &id);
        let json: serde_json::Value = serde_json::from_slice(response.body()).expect("JSON");
        assert_eq!(json["error"], "unknown-node");
        assert_eq!(json["status"], 404);
        assert_eq!(json["request_id"], "abc");
    }

    #[test]
    fn the_fleet_page_carries_its_first_picture_and_loads_nothing() {
        let snapshot = Snapshot::new(sample());
        let response = fleet(&snapshot, Form::Html, "http://x", "n0nce");
        let page = String::from_utf8(response.body().to_vec()).expect("UTF-8");
        assert!(page.contains("\"name\":\"worker-node-1\""));
        assert!(page.contains("<li><a href=\"/worker-node-1/\">worker-node-1</a>: online</li>"));
        for outside in ["http://", "https://", "src=\"/", "@import"] {
            let w3c = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!w3c.contains(outside), "{outside}");
        }
        let policy = response.headers()["content-security-policy"]
            .to_str()
            .expect("ASCII");
        assert!(policy.contains("script-src 'nonce-n0nce'"), "{policy}");
    }
}
