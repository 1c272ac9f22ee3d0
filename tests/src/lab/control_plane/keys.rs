//! The control plane's certificates, and the administrator's kubeconfig.

use std::{fs, net::IpAddr, path::Path};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

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
