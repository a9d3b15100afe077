use super::*;

fn facts() -> Facts {
    Facts {
        name: "worker-node-1".parse().expect("a name"),
        id: NodeId::from_bytes([7; 16]),
        network: NetworkName::default_network(),
        addrs: Some(OverlayAddrs {
            v4: "100.64.0.7".parse().expect("an address"),
            v6: "fd7a:115c:a1e0::7".parse().expect("an address"),
        }),
        online: true,
        version: "0.1.0",
        prefix: "/worker-node-1/".into(),
    }
}

fn ask(path: &str, headers: &[(&str, &str)], notice: Option<Notice>) -> Response<String> {
    let headers = headers
        .iter()
        .map(|(name, value)| {
            let name: HeaderName = name.parse().expect("a header");
            (name, HeaderValue::from_str(value).expect("a value"))
        })
        .collect();
    respond(&facts(), notice, &Method::GET, path, &headers)
}

const BROWSER: (&str, &str) = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");

#[test]
fn the_page_tells_who_the_node_is_in_every_form() {
    for accept in ["text/html", "application/json", "*/*"] {
        let reply = ask("/worker-node-1/", &[("accept", accept)], None);
        assert_eq!(reply.status(), StatusCode::OK);
        for fact in [
            facts().id.to_string().as_str(),
            "worker-node-1",
            "100.64.0.7",
            "0.1.0",
        ] {
            assert!(reply.body().contains(fact), "{accept}: {}", reply.body());
        }
    }
}

#[test]
fn each_asker_gets_a_form_it_can_read() {
    let form = |headers: &[(&str, &str)]| {
        ask("/", headers, None).headers()[CONTENT_TYPE]
            .to_str()
            .expect("text")
            .to_owned()
    };
    assert!(form(&[BROWSER]).starts_with("text/html"));
    assert_eq!(form(&[("accept", "application/json")]), "application/json");
    assert!(form(&[("accept", "*/*"), ("user-agent", "curl/8")]).starts_with("text/plain"));
    assert!(form(&[]).starts_with("text/plain"));
}

#[test]
fn the_requests_id_comes_back_in_header_and_page() {
    for accept in [BROWSER.1, "application/json", "*/*"] {
        let reply = ask(
            "/",
            &[("accept", accept), ("x-request-id", "trace-42")],
            None,
        );
        assert_eq!(reply.headers()[REQUEST_ID], "trace-42");
        assert!(reply.body().contains("trace-42"));
    }
}

#[test]
fn an_id_cannot_carry_markup_or_pages_of_text() {
    let reply = ask(
        "/",
        &[BROWSER, ("x-request-id", "<script>x</script>")],
        None,
    );
    assert!(!reply.body().contains("<script>"));
    assert!(reply.body().contains("&lt;script&gt;"));
    let long = "x".repeat(REQUEST_ID_MAX + 1);
    let reply = ask("/", &[BROWSER, ("x-request-id", &long)], None);
    assert!(!reply.body().contains(&long) && !reply.headers().contains_key(REQUEST_ID));
}

#[test]
fn the_page_is_self_contained() {
    let reply = ask("/", &[BROWSER], None);
    for outside in ["http://", "https://", "src=", "href=", "url(", "@import"] {
        assert!(!reply.body().contains(outside), "{outside}");
    }
    assert!(
        reply.headers()[CONTENT_SECURITY_POLICY]
            .to_str()
            .expect("text")
            .contains("'none'")
    );
    assert!(reply.body().contains("prefers-color-scheme:dark"));
}

#[test]
fn the_prefix_with_and_without_slash_and_the_root_are_the_page() {
    for path in [
        "/",
        "/worker-node-1/",
        "/worker-node-1",
        "/worker-node-1/index.html",
    ] {
        assert_eq!(ask(path, &[], None).status(), StatusCode::OK, "{path}");
    }
    for path in ["/worker-node-10/", "/worker-node-1/etc", "/ping"] {
        assert_eq!(
            ask(path, &[], None).status(),
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
    assert_eq!(
        ask("/worker-node-1/health", &[BROWSER], None).body(),
        "OK\n"
    );
}

#[test]
fn a_wrong_url_root_is_named_with_the_command_that_mends_it() {
    for accept in [BROWSER.1, "application/json", "*/*"] {
        let reply = ask("/", &[("accept", accept)], Some(Notice::UrlRootMismatch));
        assert_eq!(reply.status(), StatusCode::SERVICE_UNAVAILABLE);
        for said in [
            "cockpit-urlroot-mismatch",
            "worker-agent console configure",
            "/worker-node-1/",
        ] {
            assert!(reply.body().contains(said), "{accept}: {}", reply.body());
        }
    }
}

#[test]
fn other_methods_are_refused_and_head_has_no_body() {
    let reply = respond(&facts(), None, &Method::POST, "/", &HeaderMap::new());
    assert_eq!(reply.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(reply.headers()[ALLOW], "GET, HEAD");
    let reply = respond(&facts(), None, &Method::HEAD, "/", &HeaderMap::new());
    assert_eq!(
        (reply.status(), reply.body().as_str()),
        (StatusCode::OK, "")
    );
}

#[test]
fn a_node_that_is_cut_off_says_so() {
    let facts = Facts {
        online: false,
        ..facts()
    };
    let reply = respond(&facts, None, &Method::GET, "/", &HeaderMap::new());
    assert!(reply.body().contains("cut off from the coordinator"));
}
