//! Network namespaces with names, and work inside them.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Write,
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use serde_json::Value;

/// Where `ip netns` looks for names.
pub const FOLDER: &str = "/run/netns";

/// A network namespace that stands under its name in [`FOLDER`] until this value is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
    kept: bool,
}

impl Namespace {
    /// Makes an empty namespace, with its loopback up.
    pub fn create(name: &str) -> Result<Self> {
        own_folder().with_context(|| format!("make {FOLDER}"))?;
        let path = Path::new(FOLDER).join(name);
        File::create_new(&path).with_context(|| format!("make {}", path.display()))?;
        let made = thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<File> {
                unshare(CloneFlags::CLONE_NEWNET).context("unshare a network namespace")?;
                let own = "/proc/thread-self/ns/net";
                mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .with_context(|| format!("bind the namespace to {}", path.display()))?;
                File::open(own).context("open the namespace")
            });
            join(inside)
        });
        let namespace = Self {
            name: name.to_owned(),
            file: made.inspect_err(|_| remove(&path))?,
            kept: false,
        };
        namespace.ip("link set lo up")?;
        // Echo requests without a raw socket, for root.
        namespace.set("net/ipv4/ping_group_range", "0 0")?;
        // Devices that are made here say nothing of their own accord: no router solicitation, no search for duplicates.
        namespace.set("net/ipv6/conf/default/router_solicitations", "0")?;
        namespace.set("net/ipv6/conf/default/dad_transmits", "0")?;
        Ok(namespace)
    }

    /// One that exists.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(FOLDER).join(name);
        Ok(Self {
            name: name.to_owned(),
            file: File::open(&path).with_context(|| format!("open {}", path.display()))?,
            kept: true,
        })
    }

    /// The one that a process is in, which need not have a name; errors call it `name`.
    pub fn of_process(name: &str, process: u32) -> Result<Self> {
        let path = format!("/proc/{process}/ns/net");
        Ok(Self {
            name: name.to_owned(),
            file: File::open(&path).with_context(|| format!("open {path}"))?,
            kept: true,
        })
    }

    /// Another handle on the same namespace, which does not remove its name.
    pub fn duplicate(&self) -> Result<Self> {
        Ok(Self {
            name: self.name.clone(),
            file: self.file.try_clone()?,
            kept: true,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    /// Leaves the namespace standing when this value is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Does `work` inside, on a thread of its own. Sockets that it returns stay there, from wherever they are used.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            join(scope.spawn(|| {
                self.enter();
                work()
            }))
        })
    }

    /// Has this thread stay inside.
    pub fn enter(&self) {
        setns(&self.file, CloneFlags::CLONE_NEWNET).expect("entering a namespace that we hold");
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = self.file.try_clone().expect("duplicating a descriptor");
        let enter = move || setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(Into::into);
        // SAFETY: between fork and exec only setns(2) is called, which is async-signal-safe.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs lines of `ip` commands; the first one that fails is the error.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut child = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start `ip`")?;
        let input = lines.lines().map(str::trim).filter(|line| !line.is_empty());
        let text = input.collect::<Vec<_>>().join("\n") + "\n";
        // It stops reading at its first failure.
        let _ = child
            .stdin
            .take()
            .context("stdin of ip")?
            .write_all(text.as_bytes());
        let output = child.wait_with_output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "ip in {}: {}\n{text}",
            self.name,
            complaint.trim()
        );
        Ok(())
    }

    /// What `ip -j` lists.
    pub fn list(&self, arguments: &str) -> Result<Vec<Value>> {
        let listed = self.ask("ip", &format!("-j {arguments}"))?;
        match serde_json::from_slice(&listed) {
            Ok(Value::Array(list)) => Ok(list),
            Ok(other) => bail!("ip {arguments}: {other} is not a list"),
            Err(_) if listed.is_empty() => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// What `ethtool` says.
    pub fn ethtool(&self, arguments: &str) -> Result<String> {
        Ok(String::from_utf8(self.ask("ethtool", arguments)?)?)
    }

    /// What a program says that succeeds.
    fn ask(&self, program: &str, arguments: &str) -> Result<Vec<u8>> {
        let output = self
            .command(program)
            .args(arguments.split_whitespace())
            .output()
            .with_context(|| format!("start `{program}`"))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{program} {arguments} in {}: {}",
            self.name,
            complaint.trim()
        );
        Ok(output.stdout)
    }

    /// Has packets leave a device as they would on a wire, with their checksums; on a pair of virtual devices they otherwise do
    /// not.
    pub fn finish_checksums(&self, device: &str) -> Result<()> {
        self.ethtool(&format!("-K {device} tx off")).map(drop)
    }

    /// The names of all devices.
    pub fn devices(&self) -> Result<Vec<String>> {
        let links = self.list("link show")?;
        Ok(links
            .iter()
            .filter_map(|link| link["ifname"].as_str().map(str::to_owned))
            .collect())
    }

    /// The index of a device.
    pub fn ifindex(&self, device: &str) -> Result<u32> {
        self.run(|| nix::net::if_::if_nametoindex(device))
            .with_context(|| format!("device {device} in {}", self.name))
    }

    /// The MAC of a device.
    pub fn mac(&self, device: &str) -> Result<[u8; 6]> {
        let links = self.list(&format!("link show dev {device}"))?;
        let text = links.first().and_then(|link| link["address"].as_str());
        text.and_then(parse_mac)
            .with_context(|| format!("device {device} in {} has no MAC", self.name))
    }

    /// Writes a setting below `/proc/sys`, as this namespace sees it.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(setting);
        self.run(|| fs::write(&path, value))
            .with_context(|| format!("set {setting} to {value} in {}", self.name))
    }

    /// Reads a file as this namespace sees it (`/proc/sys`, `/proc/net`).
    pub fn read(&self, path: &str) -> Result<String> {
        self.run(|| fs::read_to_string(path))
            .with_context(|| format!("read {path} in {}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.kept {
            remove(&self.path());
        }
    }
}

/// Six bytes in hexadecimal, with colons.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok());
    bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Makes [`FOLDER`] a mount of its own, as `ip netns add` does at its first call: done later, it would put a second mount
/// over each of our names, and they could not be removed.
fn own_folder() -> Result<()> {
    fs::create_dir_all(FOLDER)?;
    let none = None::<&str>;
    let _lock = Flock::lock(File::open(FOLDER)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let share = || mount(none, FOLDER, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    if share().is_err() {
        mount(
            Some(FOLDER),
            FOLDER,
            none,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            none,
        )?;
        share()?;
    }
    Ok(())
}

/// Removes a name. The namespace itself ends with the last process and socket inside.
pub fn remove(path: &Path) {
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}
