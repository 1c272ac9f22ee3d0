//! One virtual machine under QEMU.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::guest::Job;
use super::image;
use super::kernel::{Flavour, Kernel};
use crate::process::{command, shown};
use crate::test::Tally;
use crate::workspace;

/// A machine that hangs before its tests end is started once more: emulation on a busy host can starve it.
const ATTEMPTS: u32 = 2;

/// Everything that QEMU emulates but fast string instructions, of which it does a byte at a time: with them kernels copy by
/// the byte, and the verifier takes twice as long. Five levels of page tables and SMAP cost a little and show nothing here.
const CPU: &str = "max,-erms,-fsrm,-la57,-smap";

/// The files of one machine, gone when it is.
pub(crate) struct Machine {
    initramfs: PathBuf,
    status: PathBuf,
}

impl Drop for Machine {
    fn drop(&mut self) {
        for file in [&self.initramfs, &self.status] {
            // What is left lies in `target` and misleads nobody: the next machine's files have other names.
            let _ = fs::remove_file(file);
        }
    }
}

impl Machine {
    fn new(kernel: &Kernel, job: &Job) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let folder = workspace::target().join("vm/machines");
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        // Several may run one kernel at a time.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (release, process) = (kernel.release(), std::process::id());
        let path = |kind: &str| folder.join(format!("{release}-{process}-{number}.{kind}"));
        let machine = Self {
            initramfs: path("cpio"),
            status: path("status"),
        };
        image::write(&machine.initramfs, kernel, job)?;
        Ok(machine)
    }

    /// Does the job, shows the console, and counts what the tests said.
    pub(crate) fn run(kernel: &Kernel, job: &Job, limit: Duration) -> Result<Tally> {
        let machine = Self::new(kernel, job)?;
        let mut attempt = 1;
        loop {
            match machine.attempt(kernel, limit) {
                Err(error) if attempt < ATTEMPTS => eprintln!("error: {error:#}; once more"),
                other => return other,
            }
            attempt += 1;
        }
    }

    /// The terminal becomes the machine's console until it is switched off.
    pub(crate) fn interactive(kernel: &Kernel, job: &Job) -> Result<()> {
        let machine = Self::new(kernel, job)?;
        let mut qemu = machine.qemu(kernel, "loglevel=6");
        eprintln!("==> {kernel}; `exit` switches the machine off, Ctrl-A X ends it");
        let status = qemu
            .status()
            .with_context(|| format!("cannot start `{}`", shown(&qemu)))?;
        if !status.success() {
            bail!("QEMU ended with {status}");
        }
        Ok(())
    }

    fn attempt(&self, kernel: &Kernel, limit: Duration) -> Result<Tally> {
        let mut qemu = self.qemu(kernel, "quiet");
        qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = qemu
            .spawn()
            .with_context(|| format!("cannot start `{}`", shown(&qemu)))?;
        let tally = follow(&mut child, kernel.series(), limit);
        if tally.is_err() {
            child.kill().context("ending QEMU")?;
        }
        child.wait().context("waiting for QEMU")?;
        let mut tally = tally?.on(kernel);
        let status = fs::read_to_string(&self.status).unwrap_or_default();
        match status.trim().parse::<i32>() {
            Ok(0) => {}
            Ok(code) if tally.failed == 0 => {
                tally += Tally::failure(format!("{kernel}: the test program ended with status {code}"));
            }
            Ok(_) => {}
            Err(_) => bail!("{kernel}: the machine stopped without an exit status"),
        }
        Ok(tally)
    }

    fn qemu(&self, kernel: &Kernel, messages: &str) -> Command {
        let mut qemu = command("qemu-system-x86_64");
        // Emulation everywhere: a hypervisor inside a virtual machine often is there and does not work.
        qemu.args([
            "-accel",
            "tcg,thread=multi",
            "-machine",
            "q35",
            "-cpu",
            CPU,
            "-smp",
            "2",
            "-m",
            "2048",
        ]);
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        qemu.args([
            "-chardev",
            "stdio,id=console,mux=on,signal=off",
            "-serial",
            "chardev:console",
        ]);
        qemu.args(["-mon", "chardev=console"])
            .arg("-serial")
            .arg(format!("file:{}", self.status.display()));
        // Devices with a driver of their own, at the two ends of a cable: what virtual ones do not show.
        for end in 0..2 {
            qemu.args(["-netdev", &format!("hubport,id=virtio{end},hubid=0")]);
            // Without the part that boots from the network.
            qemu.args(["-device", &format!("virtio-net-pci,netdev=virtio{end},romfile=")]);
            if kernel.flavour() == Flavour::Full {
                qemu.args(["-netdev", &format!("hubport,id=igb{end},hubid=1")]);
                // With its virtual functions each fills a bus.
                qemu.args([
                    "-device",
                    &format!("pcie-root-port,id=port{end},chassis={}", end + 1),
                ]);
                qemu.args(["-device", &format!("igb,netdev=igb{end},bus=port{end}")]);
            }
        }
        qemu.arg("-kernel")
            .arg(kernel.image())
            .arg("-initrd")
            .arg(&self.initramfs);
        // A panic ends the machine at once; mitigations cost much under emulation and guard nothing here.
        let arguments = format!("console=ttyS0 panic=-1 mitigations=off {messages}");
        qemu.arg("-append").arg(arguments);
        qemu
    }
}

/// Prints console lines behind a label, because several machines run at a time, and counts what they say, until QEMU closes
/// its end or the time is up.
fn follow(child: &mut Child, label: &str, limit: Duration) -> Result<Tally> {
    let console = child
        .stdout
        .take()
        .context("QEMU's standard output is not piped")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + limit;
    let mut tally = Tally::default();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line);
                let line = line.trim_end_matches('\r');
                println!("{label:>5} | {line}");
                tally.read(line);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(tally),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the machine did not finish within {} s", limit.as_secs())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_followed_to_its_end_and_not_beyond_the_limit() {
        let text = "test result: ok. 2 passed; 0 failed; 0 ignored\r\n";
        let mut child = Command::new("printf")
            .arg(text)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(
            follow(&mut child, "6.1", Duration::from_secs(60)).unwrap().passed,
            2
        );
        child.wait().unwrap();
        let mut child = Command::new("sleep")
            .arg("600")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let error = follow(&mut child, "6.1", Duration::from_millis(10)).unwrap_err();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(error.to_string().contains("did not finish"), "{error}");
    }
}
