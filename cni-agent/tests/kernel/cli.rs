//! The binary: an agent run by it, and commands beside it and without it.

mod refusals;
mod services;
mod uninstall;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use cni_agent::kernel::maps;
use cni_ebpf::abi::{self, Addr, Alias, Flow, FlowKey, Port, Racy, Tuple, flow_flags};
use serde_json::Value;

use crate::namespace::{Host, cable, ip, on_host, run, tree};

/// A node with a folder of its own; the agent in it is ended with the test.
struct Node {
    folder: tempfile::TempDir,
    agent: Option<Child>,
}

impl Node {
    fn new(host: &Host) -> Self {
        cable("eth0");
        ip("link set eth0 up");
        ip("addr add 192.0.2.1/24 dev eth0");
        ip("route add default via 192.0.2.254");
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::create_dir(at("manifests")).unwrap();
        let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node}\n\
                    status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n";
        fs::write(folder.path().join("manifests/node.yaml"), node).unwrap();
        let maps = host.config.maps;
        let config = format!(
            "nodeName: node\nfamilies: v4\npodCIDRs: [10.1.0.0/24]\n\
             paths: {{manifests: {}, state: {}, agentSocket: {}, adminSocket: {}}}\n\
             maps: {{conntrack: {}, conntrackNew: {}, peers: {}, fragments: {}}}\n",
            at("manifests"),
            at("state"),
            at("run/millrace/agent.sock"),
            at("run/millrace/admin.sock"),
            maps.conntrack,
            maps.conntrack_new,
            maps.peers,
            maps.fragments,
        );
        fs::write(folder.path().join("config.yaml"), config).unwrap();
        Self { folder, agent: None }
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
        command
            .args(arguments.split_whitespace())
            .env("MILLRACE_CONFIG", self.folder.path().join("config.yaml"));
        command
    }

    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn json(&self, arguments: &str) -> Value {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!(
                "{arguments}: {error}\n{text}\n{}",
                String::from_utf8_lossy(&output.stderr)
            )
        })
    }

    fn start(&mut self, arguments: &str) {
        let log = fs::File::create(self.folder.path().join("log")).unwrap();
        let mut command = self.command(&format!("agent {arguments}"));
        self.agent = Some(command.stderr(log).stdin(Stdio::null()).spawn().unwrap());
        // Not a test of time: only an end of waiting for what never comes.
        let end = Instant::now() + Duration::from_secs(120);
        while self
            .http("/readyz")
            .is_none_or(|page| !page.starts_with("HTTP/1.1 200"))
        {
            assert!(
                Instant::now() < end,
                "{}",
                fs::read_to_string(self.folder.path().join("log")).unwrap()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn stop(&mut self, signal: nix::sys::signal::Signal) {
        let mut agent = self.agent.take().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent.id() as i32), signal).unwrap();
        agent.wait().unwrap();
    }

    fn http(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", 9765)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        Some(page)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

#[test]
fn rel_51_the_agent_works_with_three_capabilities_and_closed_sockets() {
    on_host(|host| {
        let mut node = Node::new(host);
        node.start("");
        let status = node.agent.as_ref().unwrap().id();
        let status = fs::read_to_string(format!("/proc/{status}/status")).unwrap();
        // NET_ADMIN (12), PERFMON (38), BPF (39)
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert!(status.contains(&format!("{set}:\t000000c000001000")), "{status}");
        }
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        for socket in ["run/millrace/admin.sock", "run/millrace/agent.sock"] {
            let metadata = fs::metadata(node.path(socket)).unwrap();
            assert_eq!(
                (metadata.permissions().mode() & 0o777, metadata.uid()),
                (0o600, 0),
                "{socket}"
            );
        }
    });
}

#[test]
fn an_agent_says_what_works_and_its_commands_answer() {
    on_host(|host| {
        let mut node = Node::new(host);
        let status = node.json("status --json");
        assert_eq!(
            (&status["state"], &status["agent"]),
            (&Value::from("failed"), &Value::Null)
        );
        assert_eq!(node.run("status").status.code(), Some(2), "no agent runs");
        node.start("");
        let status = node.json("status --json");
        assert_eq!(status["agent"]["ready"], true, "{status}");
        let expected = if status["state"] == "ok" { 0 } else { 1 };
        assert_eq!(node.run("status").status.code(), Some(expected), "{status}");
        assert_eq!(status["agent"]["devices"], serde_json::json!(["eth0"]));
        let metrics = node.http("/metrics").unwrap();
        assert!(
            metrics.contains("millrace_ready 1")
                && metrics.contains("millrace_map_capacity{map=\"conntrack\"} 1024")
        );
        assert!(node.http("/healthz").unwrap().ends_with("ok\n"));
        assert!(node.http("/else").unwrap().starts_with("HTTP/1.1 404"));
        for command in [
            "endpoints",
            "conntrack list",
            "drops --all",
            "dump devices",
            "dump counters",
            "config show",
        ] {
            node.json(&format!("{command} --json"));
            assert!(node.run(command).status.success(), "{command}");
        }
        // The programs run: something was counted or at least every device has them.
        let status = node.json("status --json");
        assert!(
            status["checks"]
                .as_array()
                .unwrap()
                .iter()
                .all(|check| check["name"] != "attachment"),
            "{status}"
        );
        node.stop(nix::sys::signal::Signal::SIGTERM);
        // Without the agent what is in the kernel can still be read.
        node.json("conntrack list --json");
        let refused = node.run("monitor");
        assert!(
            String::from_utf8_lossy(&refused.stderr).contains("no agent runs"),
            "{refused:?}"
        );
    });
}

#[test]
fn rel_28_programs_and_maps_stay_when_the_agent_ends_or_is_killed() {
    use nix::sys::signal::Signal::{SIGKILL, SIGTERM};
    for (attach, signal) in [
        ("tcx", SIGTERM),
        ("tcx", SIGKILL),
        ("clsact", SIGTERM),
        ("clsact", SIGKILL),
    ] {
        on_host(move |host| {
            let mut node = Node::new(host);
            node.start(&format!("--attach {attach}"));
            let look = || {
                (
                    tree(&host.pins().root().join("links")),
                    ip("-o link show"),
                    filters(),
                )
            };
            let before = look();
            node.stop(signal);
            assert_eq!(look(), before, "{attach} {signal}");
            node.start(&format!("--attach {attach}"));
            let after = look();
            assert_eq!((after.0, after.1), (before.0, before.1), "{attach} {signal}");
        });
    }
}

fn filters() -> String {
    run("tc", "filter show dev eth0 ingress") + &run("tc", "filter show dev eth0 egress")
}

#[test]
fn flushing_forgets_connections_with_their_translations() {
    on_host(|host| {
        let mut node = Node::new(host);
        node.start("");
        node.stop(nix::sys::signal::Signal::SIGTERM);
        let key = |port| FlowKey {
            a: Addr::v4([10, 1, 0, 2]),
            b: Addr::v4([192, 0, 2, 9]),
            a_port: Port::new(port),
            b_port: Port::new(80),
            proto: 6,
            pad: 0,
            reserved: 0,
        };
        let flows = maps::open_existing(&host.pins(), "conntrack").unwrap();
        let nat = maps::open_existing(&host.pins(), "nat").unwrap();
        let now = cni_agent::observe::tables::now().unwrap();
        // The last one's time is over.
        for (port, seen) in [(1001, now), (1002, now), (1003, 0)] {
            let flow = Flow {
                flags: Racy::new(flow_flags::ORIGIN_A),
                seen: Racy::new(seen),
                ..Flow::default()
            };
            flows
                .put(abi::as_bytes(&key(port)), abi::as_bytes(&flow))
                .unwrap();
            let tuple = Tuple {
                src_port: Port::new(port),
                ..Tuple::default()
            };
            let alias = Alias {
                flow: key(port),
                reply: 1,
                ..Alias::default()
            };
            nat.put(abi::as_bytes(&tuple), abi::as_bytes(&alias)).unwrap();
        }
        let listed = node.json("conntrack list --json --port 1001");
        assert_eq!(listed[0]["src"], "10.1.0.2:1001", "{listed}");
        assert_eq!(node.json("conntrack list --json").as_array().unwrap().len(), 2);
        let fill = &node.json("status --json")["maps"]["conntrack"];
        assert_eq!(
            (&fill["entries"], &fill["live"]),
            (&Value::from(3), &Value::from(2))
        );
        node.run("conntrack flush --port 1003");
        assert!(
            !node.run("conntrack flush").status.success(),
            "all of them only if said so"
        );
        assert_eq!(node.json("conntrack flush --json --port 1001")["flushed"], 1);
        assert_eq!((flows.count().unwrap(), nat.count().unwrap()), (1, 1));
        assert_eq!(node.json("conntrack flush --json --all")["flushed"], 1);
        assert_eq!((flows.count().unwrap(), nat.count().unwrap()), (0, 0));
    });
}

/// An Ethernet frame with UDP in IPv4, from one address to another.
fn frame(src: [u8; 4], dst: [u8; 4], mac: &str) -> Vec<u8> {
    let mut frame: Vec<u8> = mac
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    frame.extend([2, 0, 0, 0, 0, 9, 0x08, 0x00]);
    let mut ip = vec![0x45, 0, 0, 36, 0, 1, 0, 0, 64, 17, 0, 0];
    ip.extend(src);
    ip.extend(dst);
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    frame.extend(ip);
    // Ports 1000 and 2000, length 16, no checksum, eight bytes of content.
    frame.extend([0x03, 0xe8, 0x07, 0xd0, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    frame
}

/// Puts a frame on a device's wire.
fn send_frame(device: &str, frame: &[u8]) {
    use nix::sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, sendto, socket,
    };
    use std::os::fd::AsRawFd;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).unwrap();
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: crate::namespace::ifindex(device) as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    // SAFETY: a complete `sockaddr_ll` of the length given.
    let to = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(size_of_val(&raw) as u32)) }.unwrap();
    sendto(socket.as_raw_fd(), frame, &to, MsgFlags::empty()).unwrap();
}

#[test]
fn a_drop_is_counted_and_told_with_its_reason() {
    on_host(|host| {
        let mut node = Node::new(host);
        node.start("");
        let mac = fs::read_to_string("/sys/class/net/eth0/address").map(|mac| mac.trim().to_owned());
        // The test's /sys may show another namespace's devices.
        let mac = mac.unwrap_or_else(|_| {
            ip("-o link show eth0")
                .split_whitespace()
                .skip_while(|word| *word != "link/ether")
                .nth(1)
                .unwrap()
                .to_owned()
        });
        // From outside, with the address of a pod of this node.
        let forged = frame([10, 1, 0, 5], [10, 1, 0, 5], &mac);
        let [addresses, endpoints] =
            ["addresses", "endpoints"].map(|name| maps::open_existing(&host.pins(), name).unwrap());
        let pod = abi::Endpoint {
            id: 5,
            ifindex: crate::namespace::ifindex("lo"),
            ..abi::Endpoint::default()
        };
        let monitor = node
            .command("monitor --kind drop --ip 10.1.0.5 --count 1 --json")
            .stdout(Stdio::piped())
            .spawn();
        let mut monitor = monitor.unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while monitor.try_wait().unwrap().is_none() {
            assert!(
                Instant::now() < end,
                "no event came: {}",
                node.json("drops --json")
            );
            // The agent does not know this endpoint and may take it out again.
            let slot = abi::Endpoint::slot(pod.id);
            endpoints.put(abi::as_bytes(&slot), abi::as_bytes(&pod)).unwrap();
            addresses
                .put(abi::as_bytes(&Addr::v4([10, 1, 0, 5])), abi::as_bytes(&pod.id))
                .unwrap();
            send_frame("peth0", &forged);
            thread::sleep(Duration::from_millis(50));
        }
        let mut text = String::new();
        monitor.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        let event: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&event["kind"], &event["src"]),
            (&Value::from("drop"), &Value::from("10.1.0.5")),
            "{event}"
        );
        let reason = "martian";
        assert_eq!(event["reason"], reason);
        let drops = node.json("drops --json");
        let counted = drops["dropped"]
            .as_array()
            .unwrap()
            .iter()
            .find(|drop| drop["reason"] == reason);
        assert!(counted.unwrap()["packets"].as_u64().unwrap() >= 1, "{drops}");
        assert!(
            node.http("/metrics")
                .unwrap()
                .contains(&format!("millrace_drop_packets_total{{reason=\"{reason}\""))
        );
    });
}
