//! Channel binding `tls-server-end-point` (RFC 5929, section 4): the hash of the server's certificate.
//!
//! SCRAM mixes it into the proof, so that a password is of no use to somebody in between, even where the certificate is
//! not checked.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};

/// DER tags.
const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// Families of signature algorithms: the last number of an identifier says which hash. MD5 and SHA-1 are replaced by
/// SHA-256, as the RFC says.
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01]; // 1.2.840.113549.1.1
const ECDSA_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01]; // 1.2.840.10045.4.1
const ECDSA_SHA2: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03]; // 1.2.840.10045.4.3

/// The binding of a certificate in DER form. `None`: its signature has no hash that the RFC could name (Ed25519,
/// RSA-PSS), or it is no certificate.
pub(crate) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(digest(algorithm(certificate)?, certificate).as_ref().to_vec())
}

fn algorithm(certificate: &[u8]) -> Option<&'static Algorithm> {
    let (body, _) = element(certificate, SEQUENCE)?;
    let (_, rest) = element(body, SEQUENCE)?; // what is signed
    let (signature, _) = element(rest, SEQUENCE)?;
    let (identifier, _) = element(signature, OBJECT_IDENTIFIER)?;
    let (last, family) = identifier.split_last()?;
    match (family, last) {
        (RSA, 4 | 5 | 11) | (ECDSA_SHA2, 2) => Some(&SHA256),
        (RSA, 12) | (ECDSA_SHA2, 3) => Some(&SHA384),
        (RSA, 13) | (ECDSA_SHA2, 4) => Some(&SHA512),
        _ if identifier == ECDSA_SHA1 => Some(&SHA256),
        _ => None,
    }
}

/// The content of the element that the bytes begin with, if it is of this kind, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, short], rest) = bytes.split_first_chunk::<2>()?;
    let (length, rest) = if short < 0x80 {
        (usize::from(short), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
        if digits.is_empty() || digits.len() > 4 {
            return None;
        }
        (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
    };
    (found == tag).then(|| rest.split_at_checked(length))?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn certificate(kind: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(kind).unwrap();
        CertificateParams::default().self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_hash_is_that_of_the_signature() {
        let (p256, p384) = (certificate(&PKCS_ECDSA_P256_SHA256), certificate(&PKCS_ECDSA_P384_SHA384));
        assert_eq!(end_point(&p256).unwrap(), digest(&SHA256, &p256).as_ref());
        assert_eq!(end_point(&p384).unwrap(), digest(&SHA384, &p384).as_ref());
        assert_eq!(end_point(&certificate(&PKCS_ED25519)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60), cut in 0_usize..300) {
            end_point(&bytes);
            let good = certificate(&PKCS_ECDSA_P256_SHA256);
            let cut = good.len().min(cut);
            prop_assert_eq!(end_point(&good[..cut]).is_some(), cut == good.len());
        }
    }
}
