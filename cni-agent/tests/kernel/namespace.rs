//! A host for one test.

use std::{path::Path, process::Command, thread};

use cni_agent::{
    config::Config,
    desired::{LinkKey, LinkOwner, Program},
    kernel::{Linux, Pins, links::Attachment, loader, netlink::Netlink},
    reconcile::Change,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::not_run::cannot_run;

/// The namespaces of one test, entered.
pub(crate) struct Host {
    pub(crate) config: Config,
}

/// Runs `test` on a host of its own. Where that cannot be (no privilege, no BPF object), a run under `CI=true` fails
/// and any other says why.
pub(crate) fn on_host(test: impl FnOnce(&Host) + Send + 'static) {
    if let Err(reason) = possible() {
        return cannot_run(&reason);
    }
    let result = thread::spawn(move || test(&Host::enter())).join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn possible() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root, for namespaces and BPF".to_owned());
    }
    if loader::OBJECT.is_empty() {
        return Err("built without BPF programs; `cargo xtask build` makes them".to_owned());
    }
    Ok(())
}

impl Host {
    fn enter() -> Self {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).unwrap();
        ip("link set lo up");
        let mut config = Config {
            node_name: "node".to_owned(),
            ..Config::default()
        };
        // The defaults take a hundred megabytes a test.
        config.maps.conntrack = 1024;
        config.maps.conntrack_new = 256;
        config.maps.peers = 1024;
        config.maps.fragments = 64;
        Self { config }
    }

    pub(crate) fn linux(&self, attachment: Option<Attachment>) -> Linux {
        Linux::open(&self.config).unwrap().with_attachment(attachment)
    }

    pub(crate) fn pins(&self) -> Pins {
        Pins::new(&self.config.paths.bpffs)
    }

    pub(crate) fn netlink(&self) -> Netlink {
        Netlink::open().unwrap()
    }
}

/// Drives a future to its end on this thread, which alone is in the namespaces.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Runs `ip` in the test's namespace.
pub(crate) fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

/// A device whose other end is at hand, as `pNAME`. Every kernel has this kind.
pub(crate) fn cable(name: &str) {
    ip(&format!("link add {name} type veth peer name p{name}"));
    ip(&format!("link set p{name} up"));
}

/// What has `from_netdev` run on this device.
pub(crate) fn attach_to(device: &str) -> Change {
    Change::Attach {
        link: LinkKey {
            owner: LinkOwner::Netdev(device.into()),
            program: Program::FromNetdev,
        },
        ifindex: ifindex(device),
    }
}

pub(crate) fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

pub(crate) fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// Every path below a folder.
pub(crate) fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return found;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(tree(&path));
        }
        found.push(path.display().to_string());
    }
    found.sort();
    found
}
