//! The agent's own console: one page about this node, for browsers, programs and curl.
//!
//! Strangers can read it, so it holds nothing about peers, users, paths or the machine's network.

use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use http::header::{REFERRER_POLICY, RETRY_AFTER, USER_AGENT, VARY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use mesh_types::{NetworkName, NodeId, NodeName, OverlayAddrs};
use serde_json::{Value, json};

/// Names one request across the processes it passes.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// More of a request's id is not repeated.
const REQUEST_ID_MAX: usize = 128;
/// Nothing may be loaded from anywhere, and nothing run.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'self'";

/// What the page tells about the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) name: NodeName,
    pub(crate) id: NodeId,
    pub(crate) network: NetworkName,
    pub(crate) addrs: Option<OverlayAddrs>,
    /// Whether the coordinator is connected.
    pub(crate) online: bool,
    pub(crate) version: &'static str,
    /// Path prefix at the gateway; starts and ends with `/`.
    pub(crate) prefix: String,
}

/// Why the page is shown in place of what was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Cockpit runs, but for another path than the gateway's.
    UrlRootMismatch,
    /// Cockpit is wanted, and does not answer.
    NoCockpit,
}

impl Notice {
    /// The error's name.
    fn name(self) -> &'static str {
        match self {
            Self::UrlRootMismatch => "cockpit-urlroot-mismatch",
            Self::NoCockpit => "cockpit-not-running",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::UrlRootMismatch => "Cockpit is set up for another path",
            Self::NoCockpit => "Cockpit does not answer",
        }
    }

    fn explanation(self, prefix: &str) -> String {
        match self {
            Self::UrlRootMismatch => format!(
                "Cockpit runs on this machine, but does not serve the path {prefix} that the \
                 gateway gives it. Its UrlRoot has to be set, once, on the machine:"
            ),
            Self::NoCockpit => {
                "This machine is set up to show Cockpit, which does not answer. Start it on the \
                 machine:"
                    .to_owned()
            }
        }
    }

    fn commands(self) -> &'static [&'static str] {
        match self {
            Self::UrlRootMismatch => &[
                "sudo worker-agent console configure",
                "sudo systemctl restart cockpit",
            ],
            Self::NoCockpit => &["sudo systemctl start cockpit.socket"],
        }
    }
}

/// What the asker can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Html,
    Json,
    Text,
}

/// Answers one request.
pub(crate) fn respond(
    facts: &Facts,
    notice: Option<Notice>,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Response<String> {
    let form = form(headers);
    let request = request_id(headers);
    let outcome = if method != Method::GET && method != Method::HEAD {
        Outcome::Refused(
            StatusCode::METHOD_NOT_ALLOWED,
            "Only GET and HEAD work here.",
        )
    } else {
        match within(path, &facts.prefix) {
            "" | "index.html" => notice.map_or(Outcome::Node, Outcome::Notice),
            "health" => Outcome::Health,
            _ => Outcome::Refused(StatusCode::NOT_FOUND, "There is nothing at this address."),
        }
    };
    let (form, body) = match (&outcome, form) {
        (Outcome::Health, _) => (Form::Text, "OK\n".to_owned()),
        (_, Form::Html) => (form, html(facts, &outcome, request)),
        (_, Form::Json) => (form, format!("{}\n", document(facts, &outcome, request))),
        (_, Form::Text) => (form, text(facts, &outcome, request)),
    };
    let body = if method == Method::HEAD {
        String::new()
    } else {
        body
    };
    let mut response = Response::new(body);
    *response.status_mut() = outcome.status();
    let headers = response.headers_mut();
    let content_type = match form {
        Form::Html => "text/html; charset=utf-8",
        Form::Json => "application/json",
        Form::Text => "text/plain; charset=utf-8",
    };
    for (name, value) in [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-store"),
        (VARY, "Accept, User-Agent"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CONTENT_SECURITY_POLICY, POLICY),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    match outcome {
        Outcome::Refused(StatusCode::METHOD_NOT_ALLOWED, _) => {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        Outcome::Notice(_) => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("10"));
        }
        Outcome::Refused(..) | Outcome::Node | Outcome::Health => {}
    }
    if let Some(value) = request.and_then(|id| HeaderValue::from_str(id).ok()) {
        headers.insert(REQUEST_ID, value);
    }
    response
}

/// What there is to say.
enum Outcome {
    Node,
    Notice(Notice),
    Health,
    Refused(StatusCode, &'static str),
}

impl Outcome {
    fn status(&self) -> StatusCode {
        match self {
            Self::Node | Self::Health => StatusCode::OK,
            Self::Notice(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Refused(status, _) => *status,
        }
    }
}

/// The rest of a path below the prefix, or below `/` for somebody who came without the gateway.
fn within<'a>(path: &'a str, prefix: &str) -> &'a str {
    let bare = prefix.trim_end_matches('/');
    path.strip_prefix(prefix)
        .or_else(|| (path == bare).then_some(""))
        .unwrap_or_else(|| path.trim_start_matches('/'))
}

/// Programs ask for JSON, browsers for HTML; everybody else reads plain text.
fn form(headers: &HeaderMap) -> Form {
    let value = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    let accept = value(ACCEPT).unwrap_or("*/*");
    let position = |media| accept.find(media);
    match (position("text/html"), position("application/json")) {
        (Some(html), Some(json)) if json < html => Form::Json,
        (Some(_), _) => Form::Html,
        (None, Some(_)) => Form::Json,
        (None, None) => match value(USER_AGENT) {
            Some(agent) if agent.starts_with("Mozilla/") && accept.contains("*/*") => Form::Html,
            _ => Form::Text,
        },
    }
}

/// The request's id, when it is one that can be repeated.
fn request_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let printable = id.bytes().all(|b| b.is_ascii_graphic());
    (!id.is_empty() && id.len() <= REQUEST_ID_MAX && printable).then_some(id)
}

fn state(facts: &Facts) -> &'static str {
    if facts.online {
        "online"
    } else {
        "cut off from the coordinator"
    }
}

fn addrs(facts: &Facts) -> Vec<String> {
    facts
        .addrs
        .iter()
        .flat_map(OverlayAddrs::iter)
        .map(|ip| ip.to_string())
        .collect()
}

fn document(facts: &Facts, outcome: &Outcome, request: Option<&str>) -> Value {
    let error = match outcome {
        Outcome::Node | Outcome::Health => Value::Null,
        Outcome::Notice(notice) => json!({
            "name": notice.name(),
            "message": notice.explanation(&facts.prefix),
            "commands": notice.commands(),
        }),
        Outcome::Refused(status, message) => {
            let name = if *status == StatusCode::NOT_FOUND {
                "not-found"
            } else {
                "method"
            };
            json!({ "name": name, "message": message })
        }
    };
    json!({
        "schema": "mesh.node-page/1",
        "name": facts.name,
        "node_id": facts.id,
        "network": facts.network,
        "addresses": addrs(facts),
        "state": if facts.online { "online" } else { "cut-off" },
        "version": facts.version,
        "request_id": request,
        "error": error,
    })
}

fn text(facts: &Facts, outcome: &Outcome, request: Option<&str>) -> String {
    let mut lines = match outcome {
        Outcome::Node | Outcome::Health => Vec::new(),
        Outcome::Notice(notice) => {
            let mut lines = vec![
                format!("{} ({})", notice.title(), notice.name()),
                notice.explanation(&facts.prefix),
            ];
            lines.extend(
                notice
                    .commands()
                    .iter()
                    .map(|command| format!("  {command}")),
            );
            lines.push(String::new());
            lines
        }
        Outcome::Refused(status, message) => vec![format!("{status}: {message}"), String::new()],
    };
    lines.push(format!("{} (Wonder Mesh node)", facts.name));
    lines.push(format!("  node id    {}", facts.id));
    lines.push(format!("  network    {}", facts.network));
    lines.push(format!("  addresses  {}", addrs(facts).join(", ")));
    lines.push(format!("  state      {}", state(facts)));
    lines.push(format!("  version    {}", facts.version));
    lines.extend(request.map(|id| format!("  request    {id}")));
    lines.join("\n") + "\n"
}

fn html(facts: &Facts, outcome: &Outcome, request: Option<&str>) -> String {
    let name = escape(facts.name.as_str());
    let notice = match outcome {
        Outcome::Node | Outcome::Health => String::new(),
        Outcome::Notice(notice) => {
            let commands: String = notice
                .commands()
                .iter()
                .map(|command| format!("<code>{}</code>", escape(command)))
                .collect();
            format!(
                "<section class=\"notice\" role=\"alert\"><h2>{}</h2><p>{}</p>{commands}\
                 <p class=\"dim\">{}</p></section>",
                escape(notice.title()),
                escape(&notice.explanation(&facts.prefix)),
                notice.name(),
            )
        }
        Outcome::Refused(status, message) => format!(
            "<section class=\"notice\" role=\"alert\"><h2>{}</h2><p>{}</p></section>",
            escape(&status.to_string()),
            escape(message),
        ),
    };
    let dot = if facts.online { "on" } else { "off" };
    let rows: String = [
        ("Node id", vec![facts.id.to_string()]),
        ("Network", vec![facts.network.to_string()]),
        ("Overlay addresses", addrs(facts)),
        ("Version", vec![facts.version.to_owned()]),
    ]
    .into_iter()
    .map(|(term, values)| {
        let values: String = values
            .iter()
            .map(|value| format!("<dd>{}</dd>", escape(value)))
            .collect();
        format!("<div><dt>{term}</dt>{values}</div>")
    })
    .collect();
    let request = request
        .map(|id| format!("<p class=\"dim\">Request {}</p>", escape(id)))
        .unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <title>{name} · Wonder Mesh</title><style>{STYLE}</style></head><body><main>\
         <header><p class=\"dim\">Wonder Mesh node</p><h1>{name}</h1>\
         <p class=\"state\"><span class=\"dot {dot}\"></span>{state}</p></header>\
         {notice}<dl>{rows}</dl>\
         <footer><p class=\"dim\">Served by the machine itself, through the encrypted mesh.</p>\
         {request}</footer></main></body></html>\n",
        state = state(facts),
    )
}

const STYLE: &str = "\
:root{color-scheme:light dark;--bg:#f5f6f8;--card:#fff;--fg:#14181f;--dim:#5d6673;--line:#e3e6eb;\
--on:#1a9c5b;--off:#c77a10;--code:#f0f2f5}\
@media(prefers-color-scheme:dark){:root{--bg:#0e1116;--card:#171b22;--fg:#e8ebf0;--dim:#98a2b0;\
--line:#2a303a;--on:#3fcf86;--off:#f0a93c;--code:#0e1116}}\
*{box-sizing:border-box}body{margin:0;min-height:100vh;display:grid;place-items:center;\
padding:1.5rem;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}\
main{width:100%;max-width:36rem;background:var(--card);border:1px solid var(--line);\
border-radius:14px;padding:2rem}\
h1{margin:0;font-size:1.8rem;letter-spacing:-.02em;overflow-wrap:anywhere}\
h2{margin:0;font-size:1.05rem}p{margin:.25rem 0}.dim{color:var(--dim);font-size:.85rem}\
.state{display:flex;align-items:center;gap:.5rem}\
.dot{width:.65rem;height:.65rem;border-radius:50%}.on{background:var(--on)}.off{background:var(--off)}\
dl{margin:1.5rem 0}dl div{padding:.7rem 0;border-top:1px solid var(--line)}\
dt{color:var(--dim);font-size:.85rem}\
dd{margin:0;font-family:ui-monospace,monospace;overflow-wrap:anywhere}\
.notice{margin-top:1.5rem;padding:1rem;border:1px solid var(--off);border-radius:10px}\
code{display:block;margin:.5rem 0;padding:.5rem .75rem;background:var(--code);border-radius:6px;\
overflow-wrap:anywhere}";

/// Text that is safe between tags.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests;
