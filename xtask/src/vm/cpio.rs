//! Writing a cpio archive of the format that the kernel unpacks as its first file system ("newc").

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Component, Path};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const TRAILER: &str = "TRAILER!!!";

/// An archive under construction. Folders come by themselves; a path that is there already is not written again.
pub(crate) struct Archive<W> {
    out: W,
    written: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            written: BTreeSet::new(),
        }
    }

    pub(crate) fn directory(&mut self, path: &Path) -> io::Result<()> {
        self.add(path, DIRECTORY, &[])
    }

    /// A file that may be executed, which does no harm to one that is not a program.
    pub(crate) fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.add(path, PROGRAM, content)
    }

    pub(crate) fn has(&self, path: &Path) -> bool {
        self.written.contains(&name_of(path))
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn add(&mut self, path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
        let name = name_of(path);
        if name.is_empty() || self.written.contains(&name) {
            return Ok(());
        }
        // The kernel creates no folder that the archive does not name first.
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        self.entry(&name, mode, content)?;
        self.written.insert(name);
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let length =
            |n: usize| u32::try_from(n).map_err(|_| io::Error::other(format!("{name} is too big for cpio")));
        let number = length(self.written.len() + 1)?;
        // inode, mode, user, group, links, time, size, device (2), special device (2), name with its NUL, checksum
        let (size, name_size) = (length(content.len())?, length(name.len() + 1)?);
        let fields = [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = b"070701".to_vec();
        for field in fields {
            write!(header, "{field:08x}")?;
        }
        header.extend_from_slice(name.as_bytes());
        header.push(0);
        self.padded(&header)?;
        self.padded(content)
    }

    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.out.write_all(&[0; 3][..bytes.len().wrapping_neg() % 4])
    }
}

/// The archive's paths have no leading slash.
fn name_of(path: &Path) -> String {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    });
    parts.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(fill: impl FnOnce(&mut Archive<Vec<u8>>)) -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        fill(&mut archive);
        archive.finish().unwrap()
    }

    /// The inverse, written from the format's description: (name, mode, content).
    fn entries(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let digits = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = std::str::from_utf8(&bytes[110..110 + name_size - 1])
                .unwrap()
                .to_owned();
            let start = (110 + name_size).next_multiple_of(4);
            if name == TRAILER {
                return entries;
            }
            entries.push((
                name,
                u32::try_from(mode).unwrap(),
                bytes[start..start + size].to_vec(),
            ));
            bytes = &bytes[start + size.next_multiple_of(4)..];
        }
    }

    #[test]
    fn folders_precede_what_lies_in_them_and_nothing_comes_twice() {
        let bytes = archive(|archive| {
            archive.file(Path::new("/a/b/one"), b"12345").unwrap();
            archive.file(Path::new("a/b/one"), b"other").unwrap();
            archive.file(Path::new("/a/two"), b"").unwrap();
            assert!(archive.has(Path::new("/a/b")));
        });
        let expected = [
            ("a", DIRECTORY, &b""[..]),
            ("a/b", DIRECTORY, b""),
            ("a/b/one", PROGRAM, b"12345"),
            ("a/two", PROGRAM, b""),
        ];
        assert_eq!(
            entries(&bytes),
            expected.map(|(name, mode, content)| (name.into(), mode, content.into()))
        );
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn an_empty_archive_is_a_trailer() {
        assert_eq!(entries(&archive(|_| ())), []);
    }
}
