//! `cargo xtask image`: the container image, from nothing but this tree.

mod reference;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::build::{Build, StaticBinaries};
use crate::oci::{self, Layer};
use crate::process::step;
use crate::workspace;
use reference::Reference;

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
        let layer = content(&binaries)?.compress()?;
        let name = self.tag.to_string();
        let image = oci::Image {
            name: &name,
            layer: &layer,
            entrypoint: &["/usr/bin/millrace"],
            arguments: &["agent"],
            labels: &LABELS,
        };
        let digests = oci::write(&self.out, &[image])?;
        let about = fs::metadata(&self.out).with_context(|| format!("reading {}", self.out.display()))?;
        self.say(&digests.concat(), about.len(), layer.unpacked);
        Ok(())
    }

    fn say(&self, digest: &str, bytes: u64, unpacked: usize) {
        if self.json {
            let said = serde_json::json!({
                "archive": self.out, "name": self.tag.to_string(), "digest": digest,
                "bytes": bytes, "unpackedBytes": unpacked,
            });
            println!("{said}");
        } else {
            println!("{}", self.out.display());
            println!("{}@{digest}", self.tag);
            println!("{bytes} bytes, {unpacked} unpacked");
        }
    }
}

const LABELS: [(&str, &str); 4] = [
    ("org.opencontainers.image.title", "millrace"),
    (
        "org.opencontainers.image.description",
        "The eBPF network of a Kubernetes node: agent and CNI plugin",
    ),
    ("org.opencontainers.image.version", env!("CARGO_PKG_VERSION")),
    ("org.opencontainers.image.licenses", "MIT OR Apache-2.0"),
];

/// Everything that is in the image.
fn content(binaries: &StaticBinaries) -> Result<Layer> {
    let mut layer = Layer::empty();
    layer.copy(&binaries.agent, "usr/bin/millrace")?;
    layer.copy(&binaries.plugin, "usr/bin/millrace-cni")?;
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        let to = format!("usr/share/doc/millrace/{name}");
        layer.copy_text(&workspace::root().join(name), &to)?;
    }
    Ok(layer)
}
