//! The file system of an image, in one layer.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType};

use super::{Blob, header};

const PROGRAM: u32 = 0o755;
const TEXT: u32 = 0o644;

/// A file system under construction. Folders come by themselves; a path that is there already is not written again.
pub(crate) struct Layer {
    tar: Builder<Vec<u8>>,
    written: BTreeSet<PathBuf>,
}

/// A file system that is complete.
#[derive(Clone, Debug)]
pub(crate) struct FileSystem {
    pub(super) blob: Blob,
    pub(super) media_type: &'static str,
    /// The digest of what is unpacked.
    pub(super) diff_id: String,
    pub(crate) unpacked: usize,
}

impl Layer {
    pub(crate) fn empty() -> Self {
        Self {
            tar: Builder::new(Vec::new()),
            written: BTreeSet::new(),
        }
    }

    /// One with the folders that containers take for granted.
    pub(crate) fn new() -> Result<Self> {
        let mut layer = Self::empty();
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

    /// A copy of a file that is only read.
    pub(crate) fn copy_text(&mut self, from: &Path, to: &str) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.add(&inner(to), EntryType::Regular, TEXT, &content)
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

    /// As it is: for an archive that stays on this machine.
    pub(crate) fn finish(self) -> Result<FileSystem> {
        let blob = Blob::of(self.tar.into_inner().context("packing a layer")?);
        Ok(FileSystem {
            diff_id: blob.digest(),
            unpacked: blob.bytes.len(),
            media_type: "application/vnd.oci.image.layer.v1.tar",
            blob,
        })
    }

    /// Compressed: for one that travels.
    pub(crate) fn compress(self) -> Result<FileSystem> {
        let plain = self.finish()?;
        // gzip's header has a time, too; this builder leaves it at zero.
        let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
        let packed = gzip.write_all(&plain.blob.bytes).and_then(|()| gzip.finish());
        Ok(FileSystem {
            blob: Blob::of(packed.context("compressing a layer")?),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip",
            ..plain
        })
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn layer() -> Layer {
        let mut layer = Layer::empty();
        layer.file("/usr/bin/tool", b"program").unwrap();
        layer.file("usr/bin/tool", b"another").unwrap();
        layer.link("/bin/sh", "busybox").unwrap();
        layer
    }

    #[test]
    fn folders_precede_what_lies_in_them_and_nothing_comes_twice() {
        let layer = layer().finish().unwrap();
        let mut archive = tar::Archive::new(layer.blob.bytes.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            let owner = (header.uid().unwrap(), header.gid().unwrap());
            assert_eq!((owner, header.mtime().unwrap()), ((0, 0), 0));
            (
                entry.path().unwrap().display().to_string(),
                header.mode().unwrap(),
            )
        });
        let expected = [
            ("usr", 0o755),
            ("usr/bin", 0o755),
            ("usr/bin/tool", 0o755),
            ("bin", 0o755),
            ("bin/sh", 0o777),
        ];
        assert!(entries.eq(expected.map(|(path, mode)| (path.to_owned(), mode))));
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let (one, two) = (layer().compress().unwrap(), layer().compress().unwrap());
        assert_eq!(one.blob.bytes, two.blob.bytes);
    }

    #[test]
    fn what_is_unpacked_has_its_own_digest() {
        let (plain, packed) = (layer().finish().unwrap(), layer().compress().unwrap());
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(packed.blob.bytes.as_slice())
            .read_to_end(&mut bytes)
            .unwrap();
        assert_eq!(bytes, plain.blob.bytes);
        assert_eq!(packed.diff_id, plain.blob.digest());
        assert_ne!(packed.diff_id, packed.blob.digest());
    }
}
