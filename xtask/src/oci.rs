//! Container images in an OCI archive, from files alone.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

const BEGINNING_OF_TIME: &str = "1970-01-01T00:00:00Z";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const PROGRAM: u32 = 0o755;

/// Content with its address.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    bytes: Vec<u8>,
    hash: String,
}

impl Blob {
    fn of(bytes: Vec<u8>) -> Self {
        Self {
            hash: hex(&Sha256::digest(&bytes)),
            bytes,
        }
    }

    fn json(value: &Value) -> Self {
        Self::of(value.to_string().into_bytes())
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.hash)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest(), "size": self.bytes.len()})
    }
}

/// A digest as it is written.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file system under construction. Folders come by themselves; a path that is there already is not written again.
pub(crate) struct Layer {
    tar: Builder<Vec<u8>>,
    written: BTreeSet<PathBuf>,
}

impl Layer {
    /// One with the folders that containers take for granted.
    pub(crate) fn new() -> Result<Self> {
        let mut layer = Self {
            tar: Builder::new(Vec::new()),
            written: BTreeSet::new(),
        };
        for folder in ["dev", "etc", "proc", "root", "run", "sys", "var"] {
            layer.add(Path::new(folder), EntryType::Directory, PROGRAM, &[])?;
        }
        layer.add(Path::new("tmp"), EntryType::Directory, 0o1777, &[])?;
        Ok(layer)
    }

    /// A copy of a file that may be executed, which does no harm to one that is no program.
    pub(crate) fn copy(&mut self, from: &Path, to: &str) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.file(to, &content)
    }

    pub(crate) fn file(&mut self, to: &str, content: &[u8]) -> Result<()> {
        self.add(&inner(to), EntryType::Regular, PROGRAM, content)
    }

    pub(crate) fn link(&mut self, at: &str, target: &str) -> Result<()> {
        let at = inner(at);
        if !self.written.insert(at.clone()) {
            return Ok(());
        }
        self.parents(&at)?;
        let mut header = header(EntryType::Symlink, 0o777, 0);
        self.tar
            .append_link(&mut header, &at, target)
            .with_context(|| format!("packing {}", at.display()))
    }

    pub(crate) fn finish(self) -> Result<Blob> {
        Ok(Blob::of(self.tar.into_inner().context("packing a layer")?))
    }

    fn add(&mut self, path: &Path, kind: EntryType, mode: u32, content: &[u8]) -> Result<()> {
        if !self.written.insert(path.to_owned()) {
            return Ok(());
        }
        self.parents(path)?;
        let mut header = header(kind, mode, content.len() as u64);
        self.tar
            .append_data(&mut header, path, content)
            .with_context(|| format!("packing {}", path.display()))
    }

    fn parents(&mut self, path: &Path) -> Result<()> {
        match path.parent().filter(|parent| *parent != Path::new("")) {
            Some(parent) => self.add(parent, EntryType::Directory, PROGRAM, &[]),
            None => Ok(()),
        }
    }
}

/// An image's paths have no leading slash.
fn inner(path: &str) -> PathBuf {
    path.trim_start_matches('/').into()
}

/// One that tells nothing of the machine it was made on.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// One image of an archive. Several may have the same layer, which is stored once.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    /// With its tag.
    pub(crate) name: &'a str,
    pub(crate) layer: &'a Blob,
    pub(crate) entrypoint: &'a [&'a str],
    pub(crate) arguments: &'a [&'a str],
}

impl Image<'_> {
    fn config(&self) -> Value {
        json!({
            "created": BEGINNING_OF_TIME,
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Entrypoint": self.entrypoint,
                "Cmd": self.arguments,
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [self.layer.digest()]},
            "history": [{"created": BEGINNING_OF_TIME}],
        })
    }
}

/// Writes the archive, by rename, so that whoever reads the old one reads all of it.
pub(crate) fn write(path: &Path, images: &[Image<'_>]) -> Result<()> {
    let partial = path.with_extension("partial");
    let file = File::create(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let mut archive = Builder::new(BufWriter::new(file));
    let mut written = BTreeSet::new();
    let mut named = Vec::new();
    let mut put = |name: &str, bytes: &[u8]| {
        let mut header = header(EntryType::Regular, 0o644, bytes.len() as u64);
        archive
            .append_data(&mut header, name, bytes)
            .with_context(|| format!("writing {}", partial.display()))
    };
    put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    for image in images {
        let config = Blob::json(&image.config());
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [image.layer.descriptor(LAYER)],
        }));
        for blob in [image.layer, &config, &manifest] {
            if written.insert(blob.hash.clone()) {
                put(&format!("blobs/sha256/{}", blob.hash), &blob.bytes)?;
            }
        }
        let mut descriptor = manifest.descriptor(MANIFEST);
        descriptor["annotations"] = json!({"io.containerd.image.name": image.name});
        named.push(descriptor);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": named});
    put("index.json", index.to_string().as_bytes())?;
    let file = archive.into_inner().context("ending the archive")?;
    file.into_inner()
        .map_err(std::io::IntoInnerError::into_error)
        .context("ending the archive")?;
    fs::rename(&partial, path).with_context(|| format!("renaming to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn layer() -> Blob {
        let mut layer = Layer::new().unwrap();
        layer.file("/usr/bin/tool", b"program").unwrap();
        layer.file("usr/bin/tool", b"another").unwrap();
        layer.link("/bin/sh", "busybox").unwrap();
        layer.finish().unwrap()
    }

    #[test]
    fn folders_precede_what_lies_in_them_and_nothing_comes_twice() {
        let layer = layer();
        let mut archive = tar::Archive::new(layer.bytes.as_slice());
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .skip(8)
            .collect();
        assert_eq!(names, ["usr", "usr/bin", "usr/bin/tool", "bin", "bin/sh"]);
    }

    #[test]
    fn images_share_a_layer_and_every_digest_is_true() {
        let layer = layer();
        let image = |name, entrypoint| Image {
            name,
            layer: &layer,
            entrypoint,
            arguments: &[],
        };
        let path = std::env::temp_dir().join(format!("oci-{}.tar", std::process::id()));
        write(&path, &[image("a/one:1", &["/one"]), image("a/two:1", &["/two"])]).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let mut blobs = Vec::new();
        let mut index = Value::Null;
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            match name.strip_prefix("blobs/sha256/") {
                Some(hash) => {
                    assert_eq!(hex(&Sha256::digest(&content)), hash);
                    blobs.push(hash.to_owned());
                }
                None if name == "index.json" => index = serde_json::from_slice(&content).unwrap(),
                None => {}
            }
        }
        assert_eq!(blobs.len(), 5, "one layer, two configurations, two manifests");
        let named = &index["manifests"][1]["annotations"]["io.containerd.image.name"];
        assert_eq!(named, "a/two:1");
    }
}
