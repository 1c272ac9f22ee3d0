//! `cargo xtask image`: the container image, from nothing but this tree.

mod archive;
mod layer;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::build::{Build, StaticBinaries};
use crate::process::step;
use crate::workspace;
use archive::{Archive, Reference};
use layer::{File, Layer};

/// Build the container image as an OCI archive
///
/// The image is made from scratch: the two binaries, linked statically, and the licences. No shell, no libraries, no
/// package of a distribution. The same tree and compiler give the same bytes. Prints the archive's path, the image's
/// name and its digest.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  cargo xtask image
  ctr --namespace k8s.io images import target/oci/millrace.tar
          Onto a node, without a registry
  cargo xtask image --tag registry.example.com/net/millrace:0.1.0
  skopeo copy oci-archive:target/oci/millrace.tar docker://registry.example.com/net/millrace:0.1.0
          To a registry; `crane push` and `docker load`, `docker push` take the archive too")]
pub(crate) struct Image {
    /// Where the archive is written
    #[arg(long, value_name = "FILE", default_value_os_t = workspace::image_archive())]
    out: PathBuf,
    /// The image's name with its tag
    #[arg(long, value_name = "NAME:TAG", default_value_t = Reference::of_this_release())]
    tag: Reference,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            out: workspace::image_archive(),
            tag: Reference::of_this_release(),
            json: false,
        }
    }
}

impl Image {
    pub(crate) fn run(&self) -> Result<()> {
        Build::default().programs()?;
        self.assemble()
    }

    /// The image, for which the BPF object must be there.
    pub(crate) fn assemble(&self) -> Result<()> {
        step("agent and plugin, static");
        let binaries = StaticBinaries::build()?;
        step("image");
        let layer = Layer::of(&content(&binaries)?)?;
        let archive = Archive::of(&layer, &self.tag)?;
        write(&self.out, archive.bytes())?;
        if self.json {
            let said = serde_json::json!({
                "archive": self.out, "name": self.tag.to_string(), "digest": archive.digest(),
                "bytes": archive.bytes().len(), "unpackedBytes": layer.unpacked(),
            });
            println!("{said}");
        } else {
            println!("{}", self.out.display());
            println!("{}@{}", self.tag, archive.digest());
            println!("{} bytes, {} unpacked", archive.bytes().len(), layer.unpacked());
        }
        Ok(())
    }
}

/// Everything that is in the image.
fn content(binaries: &StaticBinaries) -> Result<Vec<File>> {
    let root = workspace::root();
    let program = |path: &Path, to| File::program(path, to);
    let text = |name: &str| File::text(&root.join(name), format!("usr/share/doc/millrace/{name}"));
    Ok(vec![
        program(&binaries.agent, "usr/bin/millrace")?,
        program(&binaries.plugin, "usr/bin/millrace-cni")?,
        text("LICENSE-APACHE")?,
        text("LICENSE-MIT")?,
    ])
}

/// By rename, so that whoever reads the old archive reads all of it.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let Some(name) = path.file_name() else {
        bail!("{} names no file; give --out a file's name", path.display());
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut part = name.to_owned();
    part.push(".part");
    let part = folder.join(part);
    fs::write(&part, bytes).with_context(|| format!("writing {}", part.display()))?;
    fs::rename(&part, path).with_context(|| format!("renaming to {}", path.display()))
}
