//! Whom the node resolves names by.

use std::{collections::BTreeSet, fs, io, net::IpAddr, path::Path};

/// The `nameserver`s of a `resolv.conf`. It is read again whenever the node is looked at: others write it as the network
/// changes.
pub fn read(path: &Path) -> BTreeSet<IpAddr> {
    match fs::read_to_string(path) {
        Ok(text) => named(&text),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "the node's resolvers cannot be read");
            }
            BTreeSet::new()
        }
    }
}

fn named(text: &str) -> BTreeSet<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words
            .next()
            .filter(|word| *word == "nameserver")
            .and(words.next())?;
        // One of a link's own addresses bears the device behind it.
        address.split('%').next()?.parse().ok()
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        assert_eq!(read(&file), BTreeSet::new(), "there need not be one");
        let text = "# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.53\n  nameserver\tfe80::1%eth0 \n\
                    nameserver\nnameserver x\noptions nameserver 192.0.2.8\n";
        fs::write(&file, text).unwrap();
        let expected = ["192.0.2.53", "fe80::1"].map(|ip| ip.parse().unwrap());
        assert_eq!(read(&file), BTreeSet::from(expected));
    }
}
