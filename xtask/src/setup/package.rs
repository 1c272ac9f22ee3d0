//! What is needed, for what, and which Debian package has it.

use std::fmt;
use std::path::Path;

use clap::ValueEnum;

use crate::process::{command, find, output};

/// What a machine can be prepared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Compiling the programs and the binaries
    Build,
    /// The lint layer
    Lint,
    /// The layers that touch this machine's kernel, and comparisons with peers
    Test,
    /// Rendering and checking what is shipped
    Deploy,
    /// A real Kubernetes on this machine
    Cluster,
    /// Layers inside virtual machines
    Vm,
}

impl Group {
    pub(crate) const ALL: [Self; 6] = [
        Self::Build,
        Self::Lint,
        Self::Test,
        Self::Deploy,
        Self::Cluster,
        Self::Vm,
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suite {
    Release,
    /// The release's own version is too old.
    Backports,
}

/// How presence is seen.
enum Probe {
    Tool(&'static str),
    /// One tool, or what it is made with.
    Either(&'static str, &'static str),
    File(&'static str),
    /// A QEMU of at least this major version.
    Qemu(u32),
}

pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) group: Group,
    pub(super) suite: Suite,
    probe: Probe,
    why: &'static str,
    /// Part of Debian's BPF toolchain: not missed where another toolchain works.
    pub(super) only_for_toolchain: bool,
}

/// The strip tool, which any LLVM version has.
pub(super) const OBJCOPY: &str = "llvm-22";

const fn toolchain(name: &'static str, file: &'static str, why: &'static str) -> Package {
    let (group, suite) = (Group::Build, Suite::Release);
    Package {
        name,
        group,
        suite,
        probe: Probe::File(file),
        why,
        only_for_toolchain: true,
    }
}

const fn tool(group: Group, name: &'static str, tool: &'static str, why: &'static str) -> Package {
    Package {
        name,
        group,
        suite: Suite::Release,
        probe: Probe::Tool(tool),
        why,
        only_for_toolchain: false,
    }
}

const fn file(group: Group, name: &'static str, file: &'static str, why: &'static str) -> Package {
    Package {
        name,
        group,
        suite: Suite::Release,
        probe: Probe::File(file),
        why,
        only_for_toolchain: false,
    }
}

pub(super) const PACKAGES: &[Package] = &[
    toolchain("rustc-web", "/usr/bin/rustc", "compiles for BPF"),
    toolchain("cargo-web", "/usr/bin/cargo", "runs that compiler"),
    toolchain(
        "rust-web-src",
        "/usr/lib/rustlib/src/rust/library/core/src/lib.rs",
        "core, compiled for BPF",
    ),
    toolchain(
        "llvm-22-dev",
        "/usr/lib/llvm-22/bin/llvm-config",
        "bpf-linker is built on that compiler's LLVM",
    ),
    toolchain(
        "libpolly-22-dev",
        "/usr/lib/llvm-22/lib/libPolly.a",
        "linked into bpf-linker",
    ),
    toolchain("libzstd-dev", "/usr/include/zstd.h", "linked into bpf-linker"),
    toolchain("zlib1g-dev", "/usr/include/zlib.h", "linked into bpf-linker"),
    toolchain("g++", "/usr/bin/g++", "bpf-linker needs the C++ library"),
    file(
        Group::Build,
        OBJCOPY,
        "/usr/lib/llvm-22/bin/llvm-objcopy",
        "strips the BPF object",
    ),
    tool(
        Group::Test,
        "iproute2",
        "ip",
        "tests look at links, routes and tunnels with it",
    ),
    tool(Group::Test, "nftables", "nft", "a host firewall to live beside"),
    tool(
        Group::Test,
        "iptables",
        "iptables",
        "a host firewall to live beside; portmap needs it",
    ),
    tool(Group::Test, "iputils-ping", "ping", "ICMP from a real client"),
    file(
        Group::Test,
        "containernetworking-plugins",
        "/usr/lib/cni/bridge",
        "reference plugins to be chained with",
    ),
    tool(
        Group::Test,
        "bpftool",
        "bpftool",
        "an independent look at programs and maps",
    ),
    tool(
        Group::Test,
        "tcpdump",
        "tcpdump",
        "an independent look at packets",
    ),
    tool(Group::Test, "jq", "jq", "reads JSON output as a user would"),
    tool(
        Group::Test,
        "conntrack",
        "conntrack",
        "the host's own connection table",
    ),
    tool(Group::Test, "ethtool", "ethtool", "switches offloads off and on"),
    tool(
        Group::Test,
        "containerd",
        "containerd",
        "a real container runtime",
    ),
    tool(
        Group::Test,
        "runc",
        "runc",
        "containerd starts containers with it",
    ),
    Package {
        name: "golang-go",
        group: Group::Test,
        suite: Suite::Backports,
        probe: Probe::Either("cnitool", "go"),
        why: "compiles cnitool, which calls plugins as a container runtime does",
        only_for_toolchain: false,
    },
    Package {
        name: "golang-go",
        group: Group::Deploy,
        suite: Suite::Backports,
        probe: Probe::Either("helm", "go"),
        why: "compiles helm, which renders the chart",
        only_for_toolchain: false,
    },
    Package {
        name: "golang-go",
        group: Group::Cluster,
        suite: Suite::Backports,
        probe: Probe::Tool("go"),
        why: "compiles Kubernetes, or fetches the compiler that does",
        only_for_toolchain: false,
    },
    tool(Group::Cluster, "iproute2", "ip", "the cluster's network"),
    tool(
        Group::Cluster,
        "containerd",
        "containerd",
        "the nodes' container runtime",
    ),
    tool(
        Group::Cluster,
        "runc",
        "runc",
        "containerd starts containers with it",
    ),
    file(
        Group::Cluster,
        "containernetworking-plugins",
        "/usr/lib/cni/bridge",
        "the reference plugins, Millrace's peer and its companions",
    ),
    tool(
        Group::Cluster,
        "nftables",
        "nft",
        "kube-proxy writes its rules with it",
    ),
    tool(
        Group::Cluster,
        "iptables",
        "iptables",
        "kube-proxy, portmap and the kubelet write their rules with it",
    ),
    tool(
        Group::Cluster,
        "conntrack",
        "conntrack",
        "kube-proxy removes stale connections with it",
    ),
    tool(
        Group::Cluster,
        "mount",
        "mount",
        "the kubelet mounts volumes with it",
    ),
    file(
        Group::Cluster,
        "busybox-static",
        "/usr/share/doc/busybox-static",
        "the programs in the cluster's images",
    ),
    tool(
        Group::Cluster,
        "bash",
        "bash",
        "for the cluster's images: specs call it",
    ),
    tool(
        Group::Cluster,
        "curl",
        "curl",
        "for the cluster's images: specs call it",
    ),
    tool(
        Group::Cluster,
        "wget",
        "wget",
        "for the cluster's images: busybox's crashes with a time limit",
    ),
    tool(
        Group::Cluster,
        "bind9-dnsutils",
        "dig",
        "for the cluster's images: specs call it",
    ),
    file(
        Group::Cluster,
        "netcat-openbsd",
        "/bin/nc.openbsd",
        "for the cluster's images: specs call it",
    ),
    Package {
        name: "qemu-system-x86",
        group: Group::Vm,
        suite: Suite::Backports,
        probe: Probe::Qemu(10),
        why: "boots other kernels; its igb device has SR-IOV",
        only_for_toolchain: false,
    },
    file(
        Group::Test,
        "busybox-static",
        "/usr/share/doc/busybox-static",
        "the programs in the containers of tests",
    ),
    file(
        Group::Vm,
        "busybox-static",
        "/usr/share/doc/busybox-static",
        "the programs in the initramfs",
    ),
    tool(Group::Vm, "kmod", "depmod", "which kernel module needs which"),
    tool(Group::Vm, "xz-utils", "xz", "kernel modules come compressed"),
    tool(Group::Vm, "dpkg", "dpkg-deb", "unpacks kernels"),
];

impl Package {
    pub(super) fn is_present(&self) -> bool {
        match self.probe {
            Probe::Tool(tool) => find(tool).is_some(),
            Probe::Either(tool, other) => find(tool).is_some() || find(other).is_some(),
            Probe::File(file) => Path::new(file).exists(),
            Probe::Qemu(oldest) => output(command("qemu-system-x86_64").arg("--version"))
                .is_ok_and(|text| qemu_major(&text).is_some_and(|major| major >= oldest)),
        }
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.why)
    }
}

fn qemu_major(text: &str) -> Option<u32> {
    text.split("version ").nth(1)?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemus_version_is_read() {
        assert_eq!(
            qemu_major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"),
            Some(10)
        );
        assert_eq!(qemu_major("no such thing"), None);
    }

    #[test]
    fn no_group_lists_a_package_twice() {
        let mut names: Vec<_> = PACKAGES
            .iter()
            .map(|package| (package.name, format!("{:?}", package.group)))
            .collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
