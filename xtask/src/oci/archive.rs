//! The archive: an OCI image layout in a tar file, which `ctr`, `skopeo`, `podman` and `docker load` read.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tar::{Builder, EntryType};

use super::{Blob, FileSystem, header};

const BEGINNING_OF_TIME: &str = "1970-01-01T00:00:00Z";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Blob {
    fn json(value: &Value) -> Self {
        Self::of(value.to_string().into_bytes())
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hash)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest(), "size": self.bytes.len()})
    }
}

/// One image of an archive. Several may have the same layer, which is stored once.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    /// With its tag.
    pub(crate) name: &'a str,
    pub(crate) layer: &'a FileSystem,
    pub(crate) entrypoint: &'a [&'a str],
    pub(crate) arguments: &'a [&'a str],
    pub(crate) labels: &'a [(&'a str, &'a str)],
}

impl Image<'_> {
    fn config(&self) -> Result<Value> {
        let labels: BTreeMap<_, _> = self.labels.iter().copied().collect();
        Ok(json!({
            "created": BEGINNING_OF_TIME,
            "architecture": architecture()?,
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Entrypoint": self.entrypoint,
                "Cmd": self.arguments,
                "WorkingDir": "/",
                "Labels": labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [self.layer.diff_id]},
            "history": [{"created": BEGINNING_OF_TIME}],
        }))
    }

    fn tag(&self) -> &str {
        self.name.rsplit(':').next().unwrap_or_default()
    }
}

/// As Go, and so the image format, names it.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image is made for {other}"),
    }
}

/// Writes the archive, by rename, so that whoever reads the old one reads all of it. Gives the digests by which a
/// registry will know the images.
pub(crate) fn write(path: &Path, images: &[Image<'_>]) -> Result<Vec<String>> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let mut partial = OsString::from(path);
    partial.push(".partial");
    let partial = Path::new(&partial);
    let file = File::create(partial).with_context(|| format!("creating {}", partial.display()))?;
    let mut archive = Builder::new(BufWriter::new(file));
    let mut put = |name: &str, bytes: &[u8]| {
        let mut header = header(EntryType::Regular, 0o644, bytes.len() as u64);
        archive
            .append_data(&mut header, name, bytes)
            .with_context(|| format!("writing {}", partial.display()))
    };
    let mut written = BTreeSet::new();
    let (mut named, mut for_docker, mut digests) = (Vec::new(), Vec::new(), Vec::new());
    put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    for image in images {
        let layer = &image.layer.blob;
        let config = Blob::json(&image.config()?);
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [layer.descriptor(image.layer.media_type)],
        }));
        for blob in [layer, &config, &manifest] {
            if written.insert(blob.hash.clone()) {
                put(&blob.path(), &blob.bytes)?;
            }
        }
        let mut descriptor = manifest.descriptor(MANIFEST);
        // containerd reads the first; podman and skopeo the second.
        descriptor["annotations"] = json!({
            "io.containerd.image.name": image.name,
            "org.opencontainers.image.ref.name": image.tag(),
        });
        named.push(descriptor);
        for_docker.push(json!({
            "Config": config.path(), "RepoTags": [image.name], "Layers": [layer.path()],
        }));
        digests.push(manifest.digest());
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": named});
    put("index.json", index.to_string().as_bytes())?;
    // `docker load` of releases before 25 reads this file and nothing else.
    put("manifest.json", Value::from(for_docker).to_string().as_bytes())?;
    let file = archive.into_inner().context("ending the archive")?;
    file.into_inner()
        .map_err(std::io::IntoInnerError::into_error)
        .context("ending the archive")?;
    fs::rename(partial, path).with_context(|| format!("renaming to {}", path.display()))?;
    Ok(digests)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::super::Layer;
    use super::*;

    /// The files of an archive of two images of one layer, and what `write` said.
    fn two(name: &str) -> (Vec<u8>, BTreeMap<String, Vec<u8>>, Vec<String>) {
        let layer = Layer::new().unwrap().compress().unwrap();
        let image = |name, entrypoint| Image {
            name,
            layer: &layer,
            entrypoint,
            arguments: &[],
            labels: &[("b", "1"), ("a", "2")],
        };
        let path = std::env::temp_dir().join(format!("oci-{name}-{}.tar", std::process::id()));
        let digests = write(&path, &[image("a/one:1", &["/one"]), image("a/two:2", &["/two"])]).unwrap();
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
        (bytes, files, digests)
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
    fn the_index_leads_to_everything_and_a_shared_layer_is_stored_once() {
        let (_, files, digests) = two("index");
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let docker: Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        for (i, (name, tag, program)) in [("a/one:1", "1", "/one"), ("a/two:2", "2", "/two")]
            .into_iter()
            .enumerate()
        {
            let named = &index["manifests"][i];
            assert_eq!(named["digest"], digests[i]);
            assert_eq!(named["annotations"]["io.containerd.image.name"], name);
            assert_eq!(named["annotations"]["org.opencontainers.image.ref.name"], tag);
            let manifest = follow(&files, named);
            follow(&files, &manifest["layers"][0]);
            let config = follow(&files, &manifest["config"]);
            assert_eq!(config["config"]["Entrypoint"], json!([program]));
            assert_eq!(docker[i]["RepoTags"], json!([name]));
            for path in [&docker[i]["Config"], &docker[i]["Layers"][0]] {
                assert!(files.contains_key(path.as_str().unwrap()), "{path}");
            }
        }
        // One layer, two configurations, two manifests; three files that name them.
        assert_eq!(files.len(), 8);
    }

    #[test]
    fn the_same_images_give_the_same_bytes() {
        assert_eq!(two("first").0, two("second").0);
    }
}
