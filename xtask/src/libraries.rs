//! What a program links, as the loader finds it.

use std::path::{Path, PathBuf};

use crate::process::{command, output};

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// The loader and all libraries; nothing for a static program, which the loader refuses.
pub(crate) fn of(program: &Path) -> Vec<PathBuf> {
    let Ok(listing) = output(command(LOADER).arg("--list").arg(program)) else {
        return Vec::new();
    };
    let loader = Path::new(LOADER);
    let mut paths = vec![loader.to_owned()];
    paths.extend(
        listed(&listing)
            .filter(|path| *path != loader)
            .map(Path::to_owned),
    );
    paths
}

/// The paths in the loader's listing: `libc.so.6 => /lib/libc.so.6 (0x7f...)`.
fn listed(listing: &str) -> impl Iterator<Item = &Path> {
    let words = listing
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(Path::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_loaders_listing() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f13)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert!(listed(listing).eq(expected.map(Path::new)));
    }

    #[test]
    fn a_dynamic_program_needs_the_loader_once() {
        let libraries = of(Path::new("/bin/ls"));
        let loaders = libraries.iter().filter(|path| **path == Path::new(LOADER));
        assert_eq!(loaders.count(), 1);
    }
}
