//! The archive that `cargo xtask image` writes.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use cni_tests::require;
use serde_json::Value;

/// Both binaries and little else. They grow with what they can do; a library that comes in unseen is bigger.
const MOST_BYTES: u64 = 24 << 20;

fn archive() -> PathBuf {
    let path = std::env::var_os("MILLRACE_IMAGE").expect("run this with `cargo xtask test deploy`");
    path.into()
}

/// Unpacked by an independent program.
struct Unpacked {
    folder: tempfile::TempDir,
}

impl Unpacked {
    fn archive() -> Self {
        let folder = tempfile::tempdir().unwrap();
        untar(&archive(), folder.path());
        Self { folder }
    }

    fn blob(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap();
        self.folder.path().join("blobs").join(digest.replace(':', "/"))
    }

    fn json(&self, path: &Path) -> Value {
        serde_json::from_slice(&fs::read(self.folder.path().join(path)).unwrap()).unwrap()
    }

    fn manifest(&self) -> Value {
        let index = self.json(Path::new("index.json"));
        self.json(&self.blob(&index["manifests"][0]))
    }

    fn config(&self) -> Value {
        self.json(&self.blob(&self.manifest()["config"]))
    }

    /// The image's file system.
    fn root(&self) -> PathBuf {
        let root = self.folder.path().join("root");
        fs::create_dir(&root).unwrap();
        untar(&self.blob(&self.manifest()["layers"][0]), &root);
        root
    }
}

fn untar(archive: &Path, folder: &Path) {
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--preserve-permissions").arg("--file");
    tar.arg(archive).arg("--directory").arg(folder);
    assert!(tar.status().unwrap().success());
}

/// Paths below `root` with their modes, folders left out.
fn files(root: &Path) -> BTreeMap<String, u32> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let found = fs::symlink_metadata(&path).unwrap();
            if found.is_dir() {
                assert_eq!(found.permissions().mode() & 0o7777, 0o755, "{}", path.display());
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                files.insert(name, found.permissions().mode() & 0o7777);
            }
        }
    }
    files
}

#[test]
fn rel_15_the_image_holds_two_programs_and_their_licences() {
    let root = Unpacked::archive();
    let expected = [
        ("usr/bin/millrace", 0o755),
        ("usr/bin/millrace-cni", 0o755),
        ("usr/share/doc/millrace/LICENSE-APACHE", 0o644),
        ("usr/share/doc/millrace/LICENSE-MIT", 0o644),
    ];
    assert_eq!(
        files(&root.root()),
        expected.map(|(path, mode)| (path.to_owned(), mode)).into()
    );
}

#[test]
fn the_image_is_small() {
    let size = fs::metadata(archive()).unwrap().len();
    assert!(size < MOST_BYTES, "{size} bytes");
}

#[test]
fn the_image_tells_neither_when_nor_where_it_was_made() {
    let image = Unpacked::archive();
    let config = image.config();
    assert_eq!(config["created"], "1970-01-01T00:00:00Z");
    let root = image.root();
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for program in ["usr/bin/millrace", "usr/bin/millrace-cni"] {
        let bytes = fs::read(root.join(program)).unwrap();
        for place in [tree.to_str().unwrap(), "/registry/src/"] {
            let found = bytes
                .windows(place.len())
                .any(|window| window == place.as_bytes());
            assert!(!found, "{program} names {place}");
        }
    }
}

/// In an empty file system: no library, no shell, nothing.
#[test]
fn the_programs_run_alone() {
    require!(nix::unistd::geteuid().is_root(), "changing the root takes root");
    let root = Unpacked::archive();
    let root = root.root();
    for program in ["millrace", "millrace-cni"] {
        let mut chroot = Command::new("chroot");
        chroot
            .arg(&root)
            .arg(format!("/usr/bin/{program}"))
            .arg("--version");
        let output = chroot.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{program}: {output:?}");
        assert!(text.contains(env!("CARGO_PKG_VERSION")), "{text}");
    }
}

#[test]
fn the_image_starts_the_agent() {
    let config = Unpacked::archive().config();
    assert_eq!(
        config["config"]["Entrypoint"],
        serde_json::json!(["/usr/bin/millrace"])
    );
    assert_eq!(config["config"]["Cmd"], serde_json::json!(["agent"]));
    assert_eq!(config["os"], "linux");
}
