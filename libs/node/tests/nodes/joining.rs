//! Joining, and everything that can be wrong with it.

use super::*;

#[tokio::test]
async fn a_lost_answer_burns_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let coordinator = Coordinator::start();
    coordinator.change(|facts| facts.lose_answers = 2);
    let state = joined(&coordinator, dir.path(), 1).await;
    let enrolled = state.enrolment().expect("reads").expect("is there");
    assert_eq!(enrolled.node, NodeId::from_bytes([1; 16]));
    let again = enrol(&coordinator.token(1), EnrolOptions::new("x"), &state).await;
    assert_eq!(
        again.expect_err("is enrolled").kind(),
        EnrolErrorKind::State
    );
    let other = StateDir::open(dir.path().join("other")).expect("opens");
    let taken = enrol(&coordinator.token(1), EnrolOptions::new("x"), &other).await;
    let taken = taken.expect_err("used");
    assert_eq!(
        (taken.kind(), taken.to_string().as_str()),
        (EnrolErrorKind::Token, "this join token has been used")
    );
}

#[tokio::test]
async fn joining_says_what_is_wrong() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut coordinator = Coordinator::start();
    let other = Coordinator::start();
    let state = StateDir::open(dir.path().join("s")).expect("opens");
    let attempt = async |token| {
        enrol(&token, EnrolOptions::new("x"), &state)
            .await
            .expect_err("refused")
    };

    let mut token = coordinator.token(1);
    token.ca_fingerprint = other.token(1).ca_fingerprint;
    let error = attempt(token).await;
    assert_eq!(error.kind(), EnrolErrorKind::WrongCa);
    assert!(
        error.to_string().contains("TLS-intercepting proxy"),
        "{error}"
    );

    let mut token = coordinator.token(1);
    token.secret = [99; 32];
    let error = attempt(token).await;
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (EnrolErrorKind::Token, "this join token was revoked")
    );

    coordinator.change(|facts| facts.clock_offset = 86_400_000_000);
    let error = attempt(coordinator.token(1)).await;
    assert_eq!(error.kind(), EnrolErrorKind::Clock);
    assert!(error.to_string().contains("behind"), "{error}");

    coordinator.stop();
    let mut token = coordinator.token(1);
    token.coordinators.push("127.0.0.1:1".into());
    let error = attempt(token).await;
    assert_eq!(error.kind(), EnrolErrorKind::Unreachable);
    let text = error.to_string();
    assert!(
        text.contains("127.0.0.1:1") && text.contains(&coordinator.addr.to_string()),
        "{text}"
    );
    assert!(!state.is_enrolled());
}
