//! The archive: an OCI image layout in a tar file, which `ctr`, `skopeo`, `podman` and `docker load` read.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType};

use super::layer::{Layer, entry};

const BEGINNING_OF_TIME: &str = "1970-01-01T00:00:00Z";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Content with its address.
pub(super) struct Blob {
    bytes: Vec<u8>,
    hash: String,
}

impl Blob {
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        let hash = Sha256::digest(&bytes)
            .into_iter()
            .map(|byte| format!("{byte:02x}"));
        Self {
            hash: hash.collect(),
            bytes,
        }
    }

    fn json(value: &Value) -> Self {
        Self::of(value.to_string().into_bytes())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn digest(&self) -> String {
        format!("sha256:{}", self.hash)
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hash)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest(), "size": self.bytes.len()})
    }
}

/// `NAME:TAG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    name: String,
    tag: String,
}

impl Reference {
    /// The name that the manifests use until somebody puts their own registry's there.
    pub(super) fn of_this_release() -> Self {
        Self {
            name: "localhost/millrace".into(),
            tag: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, tag) = text
            .rsplit_once(':')
            .with_context(|| format!("`{text}` has no tag; write NAME:TAG"))?;
        let name_is_good = !name.is_empty() && name.chars().all(|c| "._-/:".contains(c) || is_plain(c));
        let tag_is_good = !tag.is_empty()
            && tag.len() <= 128
            && tag
                .chars()
                .all(|c| "._-".contains(c) || is_plain(c) || c.is_ascii_uppercase());
        if !name_is_good || !tag_is_good {
            bail!("`{text}` is no image's name; write it like registry.example.com/net/millrace:0.1.0");
        }
        // Without a host, runtimes take Docker's registry for meant, and each spells that in its own way.
        if !name.contains('/') {
            bail!("`{name}` names no registry; write it like registry.example.com/net/{name}:{tag}");
        }
        Ok(Self {
            name: name.into(),
            tag: tag.into(),
        })
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

pub(super) struct Archive {
    bytes: Vec<u8>,
    digest: String,
}

impl Archive {
    pub(super) fn of(layer: &Layer, reference: &Reference) -> Result<Self> {
        let config = Blob::json(&config(layer)?);
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [layer.packed.descriptor(LAYER)],
        }));
        let mut named = manifest.descriptor(MANIFEST);
        // containerd reads the first; podman and skopeo the second.
        named["annotations"] = json!({
            "io.containerd.image.name": reference.to_string(),
            "org.opencontainers.image.ref.name": reference.tag,
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]});
        // `docker load` of releases before 25 reads this file and nothing else.
        let docker = json!([{
            "Config": config.path(), "RepoTags": [reference.to_string()], "Layers": [layer.packed.path()],
        }]);
        let mut tar = Builder::new(Vec::new());
        let mut add = |path: &str, content: &[u8]| {
            entry(&mut tar, Path::new(path), EntryType::Regular, 0o644, content)
                .context("packing the archive")
        };
        add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        for blob in [&config, &manifest, &layer.packed] {
            add(&blob.path(), blob.bytes())?;
        }
        add("index.json", index.to_string().as_bytes())?;
        add("manifest.json", docker.to_string().as_bytes())?;
        Ok(Self {
            bytes: tar.into_inner().context("packing the archive")?,
            digest: manifest.digest(),
        })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// By which a registry will know the image.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }
}

/// How the image is run.
fn config(layer: &Layer) -> Result<Value> {
    Ok(json!({
        "created": BEGINNING_OF_TIME,
        "architecture": architecture()?,
        "os": "linux",
        "config": {
            "User": "0:0",
            "Env": ["PATH=/usr/bin"],
            "Entrypoint": ["/usr/bin/millrace"],
            "Cmd": ["agent"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "millrace",
                "org.opencontainers.image.description": "The eBPF network of a Kubernetes node: agent and CNI plugin",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
                "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
        "history": [{"created": BEGINNING_OF_TIME, "created_by": "cargo xtask image"}],
    }))
}

/// As Go, and so the image format, names it.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image is made for {other}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    fn archive() -> Archive {
        Archive::of(&Layer::of(&[]).unwrap(), &"r.example/millrace:1".parse().unwrap()).unwrap()
    }

    fn files(archive: &Archive) -> BTreeMap<String, Vec<u8>> {
        let mut tar = tar::Archive::new(archive.bytes());
        let files = tar.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        files.collect()
    }

    /// Follows a descriptor, whose digest and size must be true.
    fn follow(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Value {
        let digest = descriptor["digest"].as_str().unwrap();
        let bytes = &files[&format!("blobs/{}", digest.replace(':', "/"))];
        assert_eq!(Blob::of(bytes.clone()).digest(), digest);
        assert_eq!(descriptor["size"], bytes.len());
        serde_json::from_slice(bytes).unwrap_or(Value::Null)
    }

    #[test]
    fn the_index_leads_to_everything() {
        let archive = archive();
        let files = files(&archive);
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let named = &index["manifests"][0];
        assert_eq!(named["digest"], archive.digest());
        assert_eq!(
            named["annotations"]["io.containerd.image.name"],
            "r.example/millrace:1"
        );
        let manifest = follow(&files, named);
        let config = follow(&files, &manifest["config"]);
        follow(&files, &manifest["layers"][0]);
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/millrace");
        let docker: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        for path in [&docker[0]["Config"], &docker[0]["Layers"][0]] {
            assert!(files.contains_key(path.as_str().unwrap()), "{path}");
        }
        assert_eq!(files.len(), 6);
    }

    #[test]
    fn two_archives_of_one_layer_are_equal() {
        assert_eq!(archive().bytes(), archive().bytes());
    }

    #[test]
    fn a_name_has_a_registry_and_a_tag() {
        let good = "registry.example:5000/net/millrace:v1.2_x";
        assert_eq!(good.parse::<Reference>().unwrap().to_string(), good);
        for (bad, why) in [
            ("a/millrace", "tag"),
            ("millrace:1", "registry"),
            ("a/b c:1", "no image"),
            ("a/b:", "no image"),
            ("a/B:1", "no image"),
        ] {
            let error = bad.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
