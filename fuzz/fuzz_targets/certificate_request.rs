//! Any bytes are a certificate request that asks for nothing, or refused. What is accepted names
//! the key that signed it.
//!
//! The first byte chooses: the rest is the request, or the rest is its attributes (RFC 2986, 4.1)
//! and the request around them is made and signed here, which no fuzzer can do.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mesh_api::csr::{CsrError, key_of_request};
use mesh_api::identity::{Identity, verify};
use mesh_types::IdentityPublicKey;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

static IDENTITY: LazyLock<Identity> =
    LazyLock::new(|| Identity::generate().expect("the system gives randomness"));

/// ecdsa-with-SHA256 (RFC 5758, 3.2).
const ALGORITHM: &[u8] = &[0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];

fuzz_target!(init: fuzz::seeds(seeds), |bytes: &[u8]| {
    let Some((&choice, rest)) = bytes.split_first() else {
        return;
    };
    if choice & 1 == 0 {
        check(rest);
    } else {
        check(&signed(rest));
    }
});

fn check(request: &[u8]) {
    let Ok(key) = accept(request) else {
        return;
    };
    let (_, parsed) = X509CertificationRequest::from_der(request).expect("it was accepted");
    let info = &parsed.certification_request_info;
    assert_eq!(key.as_spki_der(), info.subject_pki.raw);
    let signature = &parsed.signature_value.data;
    assert!(verify(&key, info.raw, signature), "nobody proved this key");
    let asked = info.iter_attributes().count();
    assert_eq!(asked, 0, "what it asks for was granted");
}

fn accept(request: &[u8]) -> Result<IdentityPublicKey, CsrError> {
    match key_of_request(request) {
        // Whoever signs gets what he asks for.
        Err(CsrError::Rights(_)) if fuzz::planted() => Ok(IDENTITY.public_key().clone()),
        outcome => outcome,
    }
}

/// A request with these attributes.
fn signed(attributes: &[u8]) -> Vec<u8> {
    let name = [0x30, 0];
    let spki = IDENTITY.public_key().as_spki_der();
    let info = der(0x30, &[&[2, 1, 0], &name, spki, &der(0xa0, &[attributes])]);
    let signature = IDENTITY.sign(&info).expect("it signs");
    let signature = der(3, &[&[0], &signature]);
    der(0x30, &[&info, ALGORITHM, &signature])
}

/// Tag, length and the parts (X.690, 8.1).
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u32::try_from(content.len())
        .expect("it is short")
        .to_be_bytes();
    let mut out = vec![tag];
    match content.len() {
        0..128 => out.push(length[3]),
        _ => {
            out.push(0x84);
            out.extend_from_slice(&length);
        }
    }
    out.extend_from_slice(&content);
    out
}

/// An attribute that asks for these extensions (RFC 2985, 5.4.2).
fn extension_request(extensions: &[&[u8]]) -> Vec<u8> {
    let oid = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 14];
    let list = der(0x30, extensions);
    der(0x30, &[&oid, &der(0x31, &[&list])])
}

/// An extension of `id-ce` (RFC 5280, 4.2.1).
fn extension(number: u8, value: &[u8]) -> Vec<u8> {
    der(0x30, &[&[6, 3, 0x55, 0x1d, number], &der(4, &[value])])
}

fn seeds() -> [(&'static str, Vec<u8>); 4] {
    let plain = IDENTITY.csr_der().expect("a request");
    // digitalSignature; clientAuth; not a CA.
    let usage = extension(15, &[3, 2, 7, 0x80]);
    let client = [6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 2];
    let client = extension(37, &der(0x30, &[&client]));
    let no_ca = extension(19, &[0x30, 0]);
    let with = |extensions: &[&[u8]]| {
        let attributes = extension_request(extensions);
        let refused = key_of_request(&signed(&attributes));
        assert!(matches!(refused, Err(CsrError::Rights(_))));
        [&[1], &*attributes].concat()
    };
    [
        ("whole", [&[0], &*plain].concat()),
        ("nothing", vec![1]),
        ("usages", with(&[&usage, &client])),
        ("constraints", with(&[&no_ca])),
    ]
}
