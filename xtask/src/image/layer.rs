//! The file system of the image: one layer, the same bytes for the same files.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

use super::archive::Blob;

const PROGRAM: u32 = 0o755;
const TEXT: u32 = 0o644;

/// A file of the image. It belongs to root, and its time is the beginning of time.
pub(super) struct File {
    /// Without the leading slash.
    path: String,
    mode: u32,
    content: Vec<u8>,
}

impl File {
    pub(super) fn program(from: &Path, to: impl Into<String>) -> Result<Self> {
        Self::read(from, to.into(), PROGRAM)
    }

    pub(super) fn text(from: &Path, to: impl Into<String>) -> Result<Self> {
        Self::read(from, to.into(), TEXT)
    }

    fn read(from: &Path, path: String, mode: u32) -> Result<Self> {
        let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        Ok(Self { path, mode, content })
    }
}

pub(super) struct Layer {
    /// Compressed, as it is pulled.
    pub(super) packed: Blob,
    /// The digest of what is unpacked, by which the configuration names the layer.
    pub(super) diff_id: String,
    unpacked: usize,
}

impl Layer {
    pub(super) fn of(files: &[File]) -> Result<Self> {
        let tar = tar(files).context("packing the layer")?;
        // gzip's header has a time, too; this builder leaves it at zero.
        let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
        let packed = gzip.write_all(&tar).and_then(|()| gzip.finish());
        Ok(Self {
            packed: Blob::of(packed.context("compressing the layer")?),
            unpacked: tar.len(),
            diff_id: Blob::of(tar).digest(),
        })
    }

    pub(super) fn unpacked(&self) -> usize {
        self.unpacked
    }
}

fn tar(files: &[File]) -> std::io::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    let mut folders = BTreeSet::new();
    for file in files {
        let above: Vec<_> = Path::new(&file.path).ancestors().skip(1).collect();
        for folder in above.into_iter().rev().filter(|folder| *folder != Path::new("")) {
            if folders.insert(folder.to_owned()) {
                entry(&mut tar, folder, EntryType::Directory, PROGRAM, &[])?;
            }
        }
        entry(
            &mut tar,
            Path::new(&file.path),
            EntryType::Regular,
            file.mode,
            &file.content,
        )?;
    }
    tar.into_inner()
}

/// One entry of a tar archive that tells nothing of the machine it was made on.
pub(super) fn entry(
    tar: &mut Builder<Vec<u8>>,
    path: &Path,
    kind: EntryType,
    mode: u32,
    content: &[u8],
) -> std::io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn file(path: &str, mode: u32, content: &[u8]) -> File {
        File {
            path: path.into(),
            mode,
            content: content.into(),
        }
    }

    /// As `tar` lists it: (path, mode, size, times and owners).
    fn listing(layer: &Layer) -> Vec<(String, u32, u64, [u64; 3])> {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(layer.packed.bytes())
            .read_to_end(&mut bytes)
            .unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            let marks = [
                header.mtime().unwrap(),
                header.uid().unwrap(),
                header.gid().unwrap(),
            ];
            let path = entry.path().unwrap().display().to_string();
            (path, header.mode().unwrap(), header.size().unwrap(), marks)
        });
        entries.collect()
    }

    #[test]
    fn folders_come_once_and_before_what_lies_in_them() {
        let layer = Layer::of(&[
            file("usr/bin/a", PROGRAM, b"123"),
            file("usr/bin/b", PROGRAM, b""),
            file("usr/share/c", TEXT, b"4"),
        ])
        .unwrap();
        let nobody = [0; 3];
        let expected = [
            ("usr", 0o755, 0),
            ("usr/bin", 0o755, 0),
            ("usr/bin/a", 0o755, 3),
            ("usr/bin/b", 0o755, 0),
            ("usr/share", 0o755, 0),
            ("usr/share/c", 0o644, 1),
        ];
        let listing: Vec<_> = listing(&layer)
            .into_iter()
            .map(|(path, mode, size, marks)| (path.trim_end_matches('/').to_owned(), mode, size, marks))
            .collect();
        assert_eq!(
            listing,
            expected.map(|(path, mode, size)| (path.to_owned(), mode, size, nobody))
        );
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let files = [file("a", PROGRAM, &[7; 100_000])];
        let (one, two) = (Layer::of(&files).unwrap(), Layer::of(&files).unwrap());
        assert_eq!(one.packed.bytes(), two.packed.bytes());
        assert_ne!(one.diff_id, one.packed.digest());
    }
}
