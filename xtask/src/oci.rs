//! Container images in an OCI archive, from files alone: the same files give the same bytes.

mod archive;
mod layer;

use sha2::{Digest, Sha256};

pub(crate) use archive::{Image, write};
pub(crate) use layer::{FileSystem, Layer};

/// Content with its address.
#[derive(Clone, Debug)]
struct Blob {
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

    fn digest(&self) -> String {
        format!("sha256:{}", self.hash)
    }
}

/// A digest as it is written.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One that tells nothing of the machine it was made on.
fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}
