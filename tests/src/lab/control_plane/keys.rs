//! The control plane's certificates, and the administrator's kubeconfig.

use std::{fs, net::IpAddr, path::Path};

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SigningKey,
};
use serde_json::{Value, json};

/// Makes an authority.
pub fn authority(folder: &Path, file: &str) -> Result<Issuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, file);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    let pem = params.self_signed(&key)?.pem();
    fs::write(folder.join(file).with_extension("crt"), pem)?;
    Ok(Issuer::new(params, key))
}

struct Subject<'a> {
    file: &'a str,
    organisation: &'a str,
    usage: ExtendedKeyUsagePurpose,
    names: Vec<String>,
}

fn sign(folder: &Path, issuer: &Issuer<'_, KeyPair>, subject: Subject<'_>) -> Result<()> {
    let mut params = CertificateParams::new(subject.names)?;
    params.distinguished_name.push(DnType::CommonName, subject.file);
    params
        .distinguished_name
        .push(DnType::OrganizationName, subject.organisation);
    params.extended_key_usages = vec![subject.usage];
    let key = KeyPair::generate()?;
    let at = folder.join(subject.file);
    fs::write(at.with_extension("crt"), params.signed_by(&key, issuer)?.pem())?;
    fs::write(at.with_extension("key"), key.serialize_pem())?;
    Ok(())
}

/// A token with these claims, signed as the API server signs those of accounts.
pub(super) fn token(folder: &Path, claims: &Value) -> Result<String> {
    let key = KeyPair::from_pem(&fs::read_to_string(folder.join("accounts.key"))?)?;
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!(
        "{}.{}",
        part(&json!({ "alg": "ES256", "typ": "JWT" })),
        part(claims)
    );
    let signature = plain(&key.sign(signed.as_bytes())?)?;
    Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
}

/// The two numbers of a signature one after the other, as tokens have them, instead of DER.
fn plain(der: &[u8]) -> Result<[u8; 64]> {
    let mut rest = der.get(2..).context("a signature")?;
    let mut numbers = [0; 64];
    for number in numbers.chunks_exact_mut(32) {
        let [2, length, after @ ..] = rest else {
            bail!("no number")
        };
        let (found, after) = after
            .split_at_checked(usize::from(*length))
            .context("a cut number")?;
        // A leading zero says that it is positive; a small one is shorter.
        let found = found.strip_prefix(&[0]).unwrap_or(found);
        let begin = number.len().checked_sub(found.len()).context("a long number")?;
        number[begin..].copy_from_slice(found);
        rest = after;
    }
    Ok(numbers)
}

/// Everything that the API server and its administrator need.
pub(super) fn create(folder: &Path, addresses: &[IpAddr]) -> Result<()> {
    let issuer = authority(folder, "ca")?;
    let names = ["localhost", "kubernetes.default.svc"];
    let names = names.iter().map(ToString::to_string);
    sign(
        folder,
        &issuer,
        Subject {
            file: "apiserver",
            organisation: "millrace",
            usage: ExtendedKeyUsagePurpose::ServerAuth,
            names: names.chain(addresses.iter().map(ToString::to_string)).collect(),
        },
    )?;
    sign(
        folder,
        &issuer,
        Subject {
            file: "admin",
            organisation: "system:masters",
            usage: ExtendedKeyUsagePurpose::ClientAuth,
            names: Vec::new(),
        },
    )?;
    let accounts = KeyPair::generate()?;
    fs::write(folder.join("accounts.key"), accounts.serialize_pem())?;
    fs::write(folder.join("accounts.pub"), accounts.public_key_pem())?;
    let file = |name: &str| folder.join(name);
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {
            "server": super::ControlPlane::url(addresses[0]), "certificate-authority": file("ca.crt"),
        }}],
        "users": [{"name": "admin", "user": {
            "client-certificate": file("admin.crt"), "client-key": file("admin.key"),
        }}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
    });
    fs::write(file("admin.kubeconfig"), kubeconfig.to_string())?;
    Ok(())
}
