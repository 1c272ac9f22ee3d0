//! The images of the cluster's own pods and of tests, made here from what is here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};

use super::dns;
use super::node::PAUSE;
use super::programs::{module, program};
use crate::libraries;
use crate::oci::{self, FileSystem, Image, Layer};
use crate::process::{command, find, output, step};

/// Programs for a person who looks around, and for tests; no entry point, so that a pod gives its own command.
pub(crate) const TOOLBOX: &str = "localhost/toolbox:1";
/// Upstream's test program, in the same file system as the toolbox.
pub(crate) const AGNHOST: &str = "localhost/agnhost:1";
/// Upstream's server that sends segments which fit into no connection, under the name of its program.
pub(crate) const INJECTOR: &str = "localhost/regression-issue-74839:1";
const INJECTORS_PROGRAM: &str = "regression-issue-74839";

/// What upstream's specs call in their containers, beside busybox's applets: (program, where the image has it).
// Not busybox's shell: it prefers its own applets to the programs of these names.
const TOOLS: [(&str, &str); 7] = [
    ("dash", "/bin/sh"),
    ("bash", "/bin/bash"),
    ("curl", "/usr/bin/curl"),
    ("wget", "/usr/bin/wget"),
    ("nc.openbsd", "/bin/nc"),
    ("dig", "/usr/bin/dig"),
    ("getent", "/usr/bin/getent"),
];
const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUPS: &str = "root:x:0:\nnogroup:x:65534:\n";

/// The archive with all of them, made anew if it is older than anything that goes in.
pub(crate) fn archive() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let agnhost = program("agnhost");
    let parts = [
        program("pause"),
        program("coredns"),
        program(INJECTORS_PROGRAM),
        agnhost.clone(),
        own,
    ];
    let path = program("images.tar");
    if is_newer(&path, &parts) {
        return Ok(path);
    }
    step("images");
    let [pause, coredns, injector] = ["pause", "coredns", INJECTORS_PROGRAM].map(single);
    let (pause, coredns, injector, toolbox) = (pause?, coredns?, injector?, toolbox(&agnhost)?);
    let image = |name, layer, entrypoint, arguments| Image {
        name,
        layer,
        entrypoint,
        arguments,
        labels: &[],
    };
    oci::write(
        &path,
        &[
            image(PAUSE, &pause, &["/pause"], &[]),
            image(dns::IMAGE, &coredns, &["/coredns"], &[]),
            image(TOOLBOX, &toolbox, &[], &["sh"]),
            image(AGNHOST, &toolbox, &["/agnhost"], &["pause"]),
            image(INJECTOR, &injector, &["/regression-issue-74839"], &[]),
        ],
    )?;
    Ok(path)
}

fn is_newer(path: &Path, parts: &[PathBuf]) -> bool {
    let time = |path: &Path| path.metadata().and_then(|about| about.modified()).ok();
    let newest = parts
        .iter()
        .map(|part| time(part).unwrap_or(SystemTime::now()))
        .max();
    time(path).is_some_and(|made| Some(made) > newest)
}

/// The file system of a static program.
fn single(name: &str) -> Result<FileSystem> {
    let mut layer = Layer::new()?;
    layer.copy(&program(name), &format!("/{name}"))?;
    layer.file("/etc/passwd", USERS.as_bytes())?;
    layer.finish()
}

fn toolbox(agnhost: &Path) -> Result<FileSystem> {
    let mut layer = Layer::new()?;
    layer.copy(agnhost, "/agnhost")?;
    // As upstream's image has it: specs run name servers of their own.
    layer.copy(&program("coredns"), "/coredns")?;
    // A server of specs speaks TLS with these.
    let porter = module("k8s.io/kubernetes")?.join("test/images/agnhost/porter");
    for file in ["localhost.crt", "localhost.key"] {
        layer.copy(&porter.join(file), &format!("/{file}"))?;
    }
    for (path, text) in [
        ("/etc/passwd", USERS),
        ("/etc/group", GROUPS),
        ("/etc/nsswitch.conf", "hosts: files dns\n"),
    ] {
        layer.file(path, text.as_bytes())?;
    }
    for (tool, to) in TOOLS {
        let from = find(tool)
            .with_context(|| format!("{tool} is not installed; run `cargo xtask setup cluster`"))?;
        layer.copy(&from, to)?;
        for library in libraries::of(&from) {
            layer.copy(&library, &library.to_string_lossy())?;
        }
    }
    // Loaded by name and linked by nobody; newer C libraries have them inside.
    for library in ["libnss_dns.so.2", "libnss_files.so.2"] {
        let path = Path::new("/lib/x86_64-linux-gnu").join(library);
        if fs::exists(&path).unwrap_or(false) {
            layer.copy(&path, &path.to_string_lossy())?;
        }
    }
    let busybox = find("busybox").context("busybox is not installed; run `cargo xtask setup cluster`")?;
    layer.copy(&busybox, "/bin/busybox")?;
    for applet in output(command(&busybox).arg("--list"))?.lines() {
        // Where the image has a program of that name already, that one stays.
        if !TOOLS.iter().any(|(_, to)| to.ends_with(&format!("/{applet}"))) {
            layer.link(&format!("/bin/{applet}"), "busybox")?;
        }
    }
    layer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_made_anew_when_a_part_is_newer_or_missing() {
        let folder = std::env::temp_dir().join(format!("images-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (part, archive) = (folder.join("part"), folder.join("archive"));
        fs::write(&part, "").unwrap();
        assert!(!is_newer(&archive, std::slice::from_ref(&part)));
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&archive, "").unwrap();
        assert!(is_newer(&archive, std::slice::from_ref(&part)));
        assert!(!is_newer(&archive, &[part, folder.join("none")]));
        fs::remove_dir_all(&folder).unwrap();
    }
}
