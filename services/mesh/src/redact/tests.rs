use super::*;

/// Nobody else has this.
const PLANT: &str = "Vexing7Ostrich4Lantern9";

fn redactor() -> Redactor {
    Redactor::new(&Secrets::default()).expect("no secrets are few")
}

#[track_caller]
fn gone(text: &str) -> String {
    let (redacted, taken) = redactor().redact(text);
    assert!(
        !redacted.contains(&PLANT[..12]),
        "{text}\nbecame\n{redacted}"
    );
    assert!(taken > 0, "{text} was counted as clean");
    redacted
}

#[test]
fn what_looks_like_a_secret_is_taken_out_and_the_rest_stays() {
    for (before, after) in [
        (
            format!("store.url = postgres://mesh:{PLANT}@db:5432/mesh failed"),
            "store.url = postgres://mesh:[redacted]@db:5432/mesh failed",
        ),
        (
            format!("redis://:{PLANT}@cache:6379/0"),
            "redis://:[redacted]@cache:6379/0",
        ),
        (
            format!("joined by mesh1.{PLANT}_-x now"),
            "joined by mesh1.[redacted] now",
        ),
        (
            format!("GET /x?access_token={PLANT}&page=2"),
            "GET /x?access_token=[redacted]",
        ),
        (
            format!("Authorization: Bearer {PLANT}"),
            "Authorization: [redacted]",
        ),
        (
            format!("headers={{\"cookie\": \"cockpit={PLANT}\", \"accept\": \"*/*\"}}"),
            "headers={\"cookie\": \"[redacted]\", \"accept\": \"*/*\"}",
        ),
        (
            format!("password = \"{PLANT}\"\nlisten = \"127.0.0.1:1\""),
            "password = \"[redacted]\"\nlisten = \"127.0.0.1:1\"",
        ),
        (
            format!("MESH_COORDINATOR__MASTER_KEY={PLANT} other"),
            "MESH_COORDINATOR__MASTER_KEY=[redacted] other",
        ),
        (
            format!("OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20{PLANT}"),
            "OTEL_EXPORTER_OTLP_HEADERS=[redacted]",
        ),
        (
            format!("deploy-cli -pass {PLANT} exec true"),
            "deploy-cli -pass [redacted] exec true",
        ),
    ] {
        assert_eq!(gone(&before), after);
    }
}

#[test]
fn private_keys_are_taken_out_whole_cut_off_and_bare() {
    let body = format!("MIGHAgEAMBMGByqGSM49AgEG\n{PLANT}{PLANT}\n{PLANT}\n");
    for text in [
        format!("-----BEGIN PRIVATE KEY-----\n{body}-----END PRIVATE KEY-----\nafter"),
        format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{body}"),
        format!("{PLANT}\n{PLANT}=\n-----END EC PRIVATE KEY-----\n"),
        format!(
            "\"key\": \"-----BEGIN PRIVATE KEY-----\\n{PLANT}\\n-----END PRIVATE KEY-----\\n\""
        ),
        format!("b3BlbnNzaC1rZXktdjEAAAA{PLANT}{PLANT}"),
    ] {
        gone(&text);
    }
}

#[test]
fn what_tells_nothing_stays() {
    for text in [
        "token_file = \"/run/secrets/token\"",
        "MESH_COORDINATOR__STORE__PASSWORD_FILE=/run/secrets/pg",
        "\"password\": \"[redacted]\"",
        "password = \"\"",
        "\"tokens\": [{\"id\": \"018f\"}]",
        "mesh_coordinator_enrolment_refusals_total{reason=\"token-used\"} 3",
        "this join token has expired",
        "tokens: 12",
        "monkey = \"banana\"",
        "https://mesh.example.org:8080/health",
        "2026-01-01T00:00:00Z  INFO coordinator: ready addr=127.0.0.1:8080",
    ] {
        let (redacted, taken) = redactor().redact(text);
        assert_eq!((redacted.as_str(), taken), (text, 0));
    }
    // A file's setting that holds no path has the secret itself in the wrong place.
    gone(&format!("token_file={PLANT}"));
}

#[test]
fn redacting_twice_changes_nothing_more() {
    let text = format!(
        "Cookie: a={PLANT}\nurl=postgres://a:{PLANT}@b/c\n{{\"secret\":\"{PLANT}\"}}\nmesh1.{PLANT}"
    );
    let once = gone(&text);
    let (twice, taken) = redactor().redact(&once);
    assert_eq!((twice, taken), (once, 0));
}

#[test]
fn a_learned_secret_is_found_in_every_form_without_a_name() {
    let mut secrets = Secrets::default();
    secrets.learn_text(PLANT);
    let key: Vec<u8> = (100..132).collect();
    secrets
        .learn_file(format!("mesh node keys 1\nwireguard {}\n", STANDARD.encode(&key)).as_bytes());
    let redactor = Redactor::new(&secrets).expect("few");
    for secret in [PLANT.as_bytes(), &key] {
        let short = &secret[..ENOUGH];
        let hex: String = short.iter().map(|byte| format!("{byte:02x}")).collect();
        for form in [
            hex.clone(),
            hex.to_uppercase(),
            format!("{short:?}").trim_matches(['[', ']']).to_owned(),
            short.escape_ascii().to_string(),
            STANDARD_NO_PAD.encode(short),
            URL_SAFE_NO_PAD.encode(short),
        ] {
            let line = format!("INFO node: it said detail=\"{form}\" and went on");
            let (redacted, taken) = redactor.redact(&line);
            assert_eq!(
                redacted,
                "INFO node: it said detail=\"[redacted]\" and went on"
            );
            assert_eq!(taken, 1);
        }
    }
    // A tail of the secret goes too, whatever its length.
    let (redacted, _) = redactor.redact(&format!("a {PLANT}AndMore b"));
    assert_eq!(redacted, "a [redacted] b");
}

#[test]
fn the_number_of_a_key_is_learned_and_not_the_head_that_all_have() {
    let mut der = vec![0x30, 0x81, 0x87];
    der.resize(36, 7);
    der.extend(200..232_u8);
    let body = STANDARD.encode(&der);
    let mut secrets = Secrets::default();
    secrets.learn_file(
        format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n").as_bytes(),
    );
    let redactor = Redactor::new(&secrets).expect("few");
    let hex: String = (200..232_u8).map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(redactor.redact(&hex).0, REDACTED);
    let head = "30818707070707070707070707070707";
    assert_eq!(redactor.redact(head).0, head);
}

#[test]
fn a_secret_too_short_for_a_search_is_found_by_its_name_only() {
    let mut secrets = Secrets::default();
    secrets.learn_text("up");
    let redactor = Redactor::new(&secrets).expect("few");
    assert_eq!(redactor.redact("mesh up runs").0, "mesh up runs");
    assert_eq!(redactor.redact("password=up").0, "password=[redacted]");
}

#[test]
fn no_tail_of_a_known_secret_is_left() {
    let secret = "Vexing7Ostrich!Lantern9";
    let mut secrets = Secrets::default();
    // The shorter one first, and a part of the longer one.
    secrets.learn_text("Vexing7Ostrich");
    secrets.learn_text(secret);
    let redactor = Redactor::new(&secrets).expect("few");
    for text in [
        secret,
        "Vexing7Ostrich!Lan",
        "password=Vexing7Ostrich!Lantern9",
    ] {
        let (redacted, _) = redactor.redact(text);
        assert_eq!(
            redacted,
            text.replace(&text[text.find('V').expect("there")..], REDACTED)
        );
    }
}

#[test]
fn a_value_with_the_mark_in_it_is_still_secret() {
    for text in ["password=[redacted]!Lantern9", "\"token\": \"x[redacted]\""] {
        let (redacted, taken) = redactor().redact(text);
        assert!(
            !redacted.contains("Lantern9") && !redacted.contains("x["),
            "{redacted}"
        );
        assert_eq!(taken, 1);
    }
}

#[test]
fn a_long_secret_is_found_whole_and_cut_off_anywhere() {
    let long: String = (0..40).map(|n| format!("Mile{n} of(it) ")).collect();
    let long = long.trim();
    assert!(long.len() > 3 * FOLLOWED);
    let mut secrets = Secrets::default();
    secrets.learn_text(long);
    let redactor = Redactor::new(&secrets).expect("one secret is few");
    for shown in [long, &long[..FOLLOWED], &long[..40]] {
        let (left, taken) = redactor.redact(&format!("say {shown}; end"));
        assert_eq!((left.as_str(), taken), ("say [redacted]; end", 1));
    }
}
