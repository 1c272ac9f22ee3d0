//! The cluster's certificates, and the kubeconfigs that hold them.

use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::place::{Place, write};
use super::plan::Plan;

/// Who a certificate is for, by the names that RBAC knows.
struct Subject<'a> {
    file: &'a str,
    organisation: Option<&'a str>,
    name: &'a str,
}

/// One authority and where its certificates go.
struct Authority {
    folder: PathBuf,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn create(folder: PathBuf, file: &str, name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        write(&folder.join(file).with_extension("crt"), &pem)?;
        write_secret(&folder.join(file).with_extension("key"), key.serialize_pem())?;
        Ok(Self {
            folder,
            pem,
            issuer: Issuer::new(params, key),
        })
    }

    fn client(&self, subject: &Subject<'_>) -> Result<(String, String)> {
        self.sign(subject, &[], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn server(&self, file: &str, names: &[String]) -> Result<()> {
        let subject = Subject {
            file,
            organisation: None,
            name: file,
        };
        self.sign(&subject, names, ExtendedKeyUsagePurpose::ServerAuth)?;
        Ok(())
    }

    fn sign(
        &self,
        subject: &Subject<'_>,
        names: &[String],
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(String, String)> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, subject.name);
        if let Some(organisation) = subject.organisation {
            params
                .distinguished_name
                .push(DnType::OrganizationName, organisation);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let pair = (params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem());
        write(&self.folder.join(subject.file).with_extension("crt"), &pair.0)?;
        write_secret(&self.folder.join(subject.file).with_extension("key"), &pair.1)?;
        Ok(pair)
    }

    /// A kubeconfig for each server given, all with one certificate.
    fn kubeconfig(&self, subject: &Subject<'_>, at: &[(PathBuf, String)]) -> Result<()> {
        let (certificate, key) = self.client(subject)?;
        for (path, server) in at {
            let text = kubeconfig(server, &self.pem, &certificate, &key);
            write_secret(path, text)?;
        }
        Ok(())
    }
}

/// Makes everything that the control plane and the nodes need. `port` is the API server's on this machine's loopback.
pub(crate) fn create(place: &Place, plan: &Plan, port: u16) -> Result<()> {
    let folder = place.keys();
    let authority = Authority::create(folder.clone(), "ca", "millrace-cluster-ca")?;
    let front = Authority::create(folder.clone(), "front-ca", "millrace-cluster-front-proxy-ca")?;
    authority.server("apiserver", &api_names(plan))?;
    authority.client(&Subject {
        file: "apiserver-kubelet",
        organisation: Some("system:masters"),
        name: "kube-apiserver-kubelet-client",
    })?;
    front.client(&Subject {
        file: "front-proxy",
        organisation: None,
        name: "front-proxy-client",
    })?;
    let server = server(plan);
    let in_fabric = |file: &str| (folder.join(file).with_extension("kubeconfig"), server.clone());
    let admin = Subject {
        file: "admin",
        organisation: Some("system:masters"),
        name: "admin",
    };
    let local = (place.kubeconfig(), format!("https://127.0.0.1:{port}"));
    authority.kubeconfig(&admin, &[in_fabric("admin"), local])?;
    for (file, name) in [
        ("controller-manager", "system:kube-controller-manager"),
        ("scheduler", "system:kube-scheduler"),
        ("kube-proxy", "system:kube-proxy"),
    ] {
        let subject = Subject {
            file,
            organisation: None,
            name,
        };
        authority.kubeconfig(&subject, &[in_fabric(file)])?;
    }
    for node in plan.nodes() {
        let file = format!("kubelet-{node}");
        let subject = Subject {
            file: &file,
            organisation: Some("system:nodes"),
            name: &format!("system:node:{node}"),
        };
        authority.kubeconfig(&subject, &[in_fabric(&file)])?;
        let addresses = plan.layouts().iter().map(|layout| layout.node(node).to_string());
        let names: Vec<_> = addresses.chain([node.to_string()]).collect();
        authority.server(&format!("kubelet-{node}-serving"), &names)?;
    }
    let accounts = KeyPair::generate()?;
    write_secret(&folder.join("accounts.key"), accounts.serialize_pem())?;
    write(&folder.join("accounts.pub"), accounts.public_key_pem())
}

/// Every name under which the API server is called.
fn api_names(plan: &Plan) -> Vec<String> {
    let names = [
        "localhost",
        "127.0.0.1",
        "::1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    let addresses = plan
        .layouts()
        .iter()
        .flat_map(|layout| [layout.api, layout.api_service]);
    let addresses = addresses.map(|address| address.to_string());
    names.into_iter().map(str::to_owned).chain(addresses).collect()
}

pub(crate) const API_PORT: u16 = 6443;

/// Where the API server is for the nodes.
pub(crate) fn server(plan: &Plan) -> String {
    format!("https://{}", with_port(plan.first().api))
}

fn with_port(address: IpAddr) -> String {
    std::net::SocketAddr::new(address, API_PORT).to_string()
}

fn kubeconfig(server: &str, authority: &str, certificate: &str, key: &str) -> String {
    let [authority, certificate, key] = [authority, certificate, key].map(|pem| BASE64_STANDARD.encode(pem));
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: millrace
  cluster: {{server: \"{server}\", certificate-authority-data: {authority}}}
users:
- name: user
  user: {{client-certificate-data: {certificate}, client-key-data: {key}}}
contexts:
- name: millrace
  context: {{cluster: millrace, user: user}}
current-context: millrace
"
    )
}

fn write_secret(path: &std::path::Path, text: impl AsRef<[u8]>) -> Result<()> {
    write(path, text)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))
        .with_context(|| format!("closing {} to others", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::plan::Family;

    #[test]
    fn the_api_server_answers_to_the_addresses_of_the_chosen_family_alone() {
        let names = api_names(&Plan::without_nodes(Family::V6));
        assert!(names.contains(&"fd00:10:96::1".to_owned()));
        assert!(!names.iter().any(|name| name.starts_with("10.")));
    }

    #[test]
    fn a_server_with_a_six_address_stands_in_brackets() {
        assert_eq!(
            with_port(IpAddr::V6("fd00::1".parse().unwrap())),
            "[fd00::1]:6443"
        );
    }
}
