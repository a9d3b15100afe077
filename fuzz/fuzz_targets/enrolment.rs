//! Any bytes are a request to join or refused; what is read can be written, and says the same to
//! whoever reads it again. A proof holds for the one key that made it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_api::identity::{ENROL_DISCO, ENROL_WG, enrol_proof, verify_enrol_proof};
use mesh_api::model::enrolment::{Enrolment, ProvenKey};
use mesh_api::{ProtocolError, pb};
use mesh_types::key::SecretKey;
use mesh_types::{DiscoPublicKey, TokenId, WgPublicKey};
use prost::Message as _;
use zeroize::Zeroizing;

/// What both sides find for the challenge in the seeds.
const SHARED: [u8; 32] = [7; 32];
const SPKI: &[u8] = b"the public key of a request";

fuzz_target!(init: fuzz::seeds(seeds), |bytes: &[u8]| {
    let Ok(message) = pb::EnrolRequest::decode(bytes) else {
        return;
    };
    let Ok(enrolment) = read(message.clone()) else {
        return;
    };
    // Unknown fields are dropped, so the message is compared and not its bytes.
    let written = pb::EnrolRequest::from(enrolment.clone());
    assert!(written == message, "a field was lost or made up");
    // By a byte, where a single role came without the length that a list of them has.
    assert!(written.encoded_len() <= bytes.len() + 1, "it grew");
    let again = pb::EnrolRequest::decode(written.encode_to_vec().as_slice());
    let again = read(again.expect("what was written can be read"));
    assert!(again.expect("it was a request before") == enrolment);

    if let Some(ProvenKey { proof, .. }) = &enrolment.wg {
        let right = enrol_proof(ENROL_WG, &SHARED, &enrolment.nonce, SPKI);
        let holds = verify_enrol_proof(ENROL_WG, &SHARED, &enrolment.nonce, SPKI, proof);
        assert_eq!(holds, *proof == right);
        assert!(!verify_enrol_proof(ENROL_DISCO, &SHARED, &enrolment.nonce, SPKI, &right));
    }
});

fn read(message: pb::EnrolRequest) -> Result<Enrolment, ProtocolError> {
    let mut enrolment = Enrolment::try_from(message)?;
    if fuzz::planted() && enrolment.wg.is_some() && enrolment.disco.is_none() {
        // A relay with one key is taken for one with none.
        enrolment.wg = None;
    }
    Ok(enrolment)
}

fn seeds() -> [(&'static str, Vec<u8>); 3] {
    let nonce = vec![4; 32];
    let proof = |context| enrol_proof(context, &SHARED, &nonce, SPKI).to_vec();
    let public = mesh_tunnel::wg_public_key(&SecretKey::from_bytes([5; 32]));
    let node = Enrolment {
        token: TokenId::from_bytes([1; 16]),
        secret: Zeroizing::new(vec![2; 32]),
        nonce: nonce.clone(),
        hostname: "worker".to_owned(),
        csr: b"0".to_vec(),
        wg: Some(ProvenKey {
            key: WgPublicKey::from_bytes(*public.as_bytes()),
            proof: proof(ENROL_WG),
        }),
        disco: Some(ProvenKey {
            key: DiscoPublicKey::from_bytes(*public.as_bytes()),
            proof: proof(ENROL_DISCO),
        }),
        version: "0.1.0".to_owned(),
        permit: None,
        roles: Vec::new(),
    };
    let relay = Enrolment {
        wg: None,
        disco: None,
        ..node.clone()
    };
    let again = Enrolment {
        permit: Some(vec![6; 32]),
        ..node.clone()
    };
    let write = |enrolment| pb::EnrolRequest::from(enrolment).encode_to_vec();
    [
        ("node", write(node)),
        ("relay", write(relay)),
        ("with_permit", write(again)),
    ]
}
