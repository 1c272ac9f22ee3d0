//! The main job, shown step by step: `cargo xtask demo` runs this.

mod show;

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use cni_tests::{
    frames::Ends,
    lab::{Families, Lab, Node, Plan, Pod, Routing, Signal, bring_down},
    netns::Namespace,
    traffic::{self, Echo, Steady},
    wire::Tap,
};
use show::{Cell, Show};

/// The lab that `--keep` leaves, by this variable or by default.
const NAME: &str = "MILLRACE_DEMO_LAB";
const LAB: &str = "mrlab-demo";

fn kept_lab() -> String {
    std::env::var(NAME).unwrap_or_else(|_| LAB.to_owned())
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => demo(false),
        ["--keep"] => demo(true),
        ["--down"] => down(),
        _ => Err(anyhow::anyhow!("usage: demo [--keep | --down]")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn down() -> Result<()> {
    match bring_down(&kept_lab()) {
        true => println!("The lab is gone."),
        false => println!("There is no lab; `cargo xtask demo --keep` leaves one."),
    }
    Ok(())
}

/// Three pods on two nodes.
struct Scene {
    lab: Lab,
    pods: [Pod; 3],
}

impl Scene {
    fn begin(show: &mut Show, routing: Routing, name: &str) -> Result<Self> {
        show.step(match routing {
            Routing::Direct => "Two nodes, direct routing, IPv4 and IPv6",
            Routing::Vxlan => "Two nodes, a VXLAN tunnel between them, IPv4 and IPv6",
        });
        let began = Instant::now();
        let lab = Lab::start_named(Plan::new(routing, Families::Dual), name)?;
        show.say(&format!(
            "two agents have loaded their programs and are ready ({})",
            show::time(began.elapsed())
        ));
        let mut pods = Vec::new();
        for (node, name) in [(0, "a"), (0, "b"), (1, "c")] {
            let began = Instant::now();
            let pod = lab.nodes[node].add_pod(name)?;
            let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
            show.say(&format!(
                "pod {name} on node{node}: {} (CNI ADD: {})",
                addresses.join(", "),
                show::time(began.elapsed())
            ));
            pods.push(pod);
        }
        let pods = <[Pod; 3]>::try_from(pods).ok().context("three pods")?;
        Ok(Self { lab, pods })
    }

    fn traffic(&self, show: &mut Show) -> Result<()> {
        let [a, b, c] = &self.pods;
        let [near, far] = &self.lab.nodes[..] else {
            bail!("the demo has two nodes");
        };
        let (lab, pod_a) = (&self.lab, &a.namespace);
        type Row<'a> = (&'a str, &'a Namespace, &'a Namespace, [IpAddr; 2]);
        let both = |address: &dyn Fn(bool) -> IpAddr| [address(true), address(false)];
        let rows: [Row<'_>; 7] = [
            (
                "pod a -> pod b, same node",
                pod_a,
                &b.namespace,
                both(&|v4| b.ip(v4)),
            ),
            (
                "pod a -> pod c, other node",
                pod_a,
                &c.namespace,
                both(&|v4| c.ip(v4)),
            ),
            (
                "pod a -> its node",
                pod_a,
                &near.namespace,
                both(&|v4| near.address(v4)),
            ),
            (
                "pod a -> the other node",
                pod_a,
                &far.namespace,
                both(&|v4| far.address(v4)),
            ),
            ("node0 -> pod a", &near.namespace, pod_a, both(&|v4| a.ip(v4))),
            (
                "node0 -> pod c",
                &near.namespace,
                &c.namespace,
                both(&|v4| c.ip(v4)),
            ),
            (
                "pod a -> outside, masqueraded",
                pod_a,
                &lab.outside,
                both(&|v4| lab.outside_address(v4)),
            ),
        ];
        show.header(&["", "ping4", "tcp4", "udp4", "ping6", "tcp6", "udp6"]);
        for (name, from, there, addresses) in rows {
            let cells = addresses
                .into_iter()
                .flat_map(|to| exchanges(from, there, to))
                .collect();
            show.row(name, cells);
        }
        Ok(())
    }
}

fn exchanges(from: &Namespace, there: &Namespace, to: IpAddr) -> [Cell; 3] {
    let tcp = || {
        let server = Echo::tcp(there, to, 0)?;
        timed(|| traffic::tcp(from, server.address, 100_000))
    };
    let udp = || {
        let server = Echo::udp(there, to, 0)?;
        timed(|| traffic::udp(from, server.address, 1000))
    };
    [timed(|| traffic::ping(from, to, 56)), tcp(), udp()]
}

fn timed<T>(exchange: impl FnOnce() -> Result<T>) -> Cell {
    let began = Instant::now();
    exchange().map(|_| began.elapsed())
}

fn demo(keep: bool) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces and BPF need root; run `sudo -E cargo xtask demo`");
    }
    if keep && std::path::Path::new("/run/mrlab").join(kept_lab()).exists() {
        bail!("the lab of an earlier `--keep` is still up; remove it with `cargo xtask demo --down`");
    }
    let mut show = Show::default();
    // One that stays has a name that `--down` knows; others may run at the same time.
    let name = match keep {
        true => kept_lab(),
        false => format!("{LAB}-{}", std::process::id()),
    };
    let direct = Scene::begin(&mut show, Routing::Direct, &format!("{name}-direct"))?;
    direct.traffic(&mut show)?;
    drop(direct);
    let scene = Scene::begin(&mut show, Routing::Vxlan, &name)?;
    scene.traffic(&mut show)?;
    status(&mut show, &scene.lab.nodes[0])?;
    forged(&mut show, &scene)?;
    restart(&mut show, &scene)?;
    if keep {
        let Scene { lab, pods } = scene;
        let hints = usage(&lab, &pods);
        lab.keep(pods.into())?;
        show.step("The lab stays up");
        println!("{hints}");
    } else {
        let name = scene.lab.name().to_owned();
        drop(scene);
        show.step("Cleaned up");
        let left = cni_tests::lab::leftovers(&name);
        show.check("nothing is left: no namespace, no mount, no pin", left.is_empty());
        next(&show);
    }
    show.finish()
}

fn status(show: &mut Show, node: &Node) -> Result<()> {
    show.step("millrace status");
    show.output(&node.millrace(["status"]).output()?.stdout);
    Ok(())
}

/// A pod sends with an address that is not its own.
fn forged(show: &mut Show, scene: &Scene) -> Result<()> {
    show.step("Pod a sends 5 packets with pod b's address: millrace drops");
    let [a, b, c] = &scene.pods;
    let node = &scene.lab.nodes[0];
    let before = node.drops()?;
    let forged = Ends {
        src_mac: a.mac,
        dst_mac: a.host_mac,
        src: b.ip(true),
        dst: c.ip(true),
        src_port: 4000,
        dst_port: 4000,
        ttl: 64,
    };
    let tap = Tap::open(&a.namespace, "eth0")?;
    for _ in 0..5 {
        tap.send(&forged.udp(b"who am I?"))?;
    }
    let count = |drops: &cni_tests::lab::Drops| drops.get("source_address/egress").copied().unwrap_or(0);
    let mut counted = 0;
    for _ in 0..100 {
        counted = count(&node.drops()?) - count(&before);
        if counted >= 5 {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    show.output(&node.millrace(["drops"]).output()?.stdout);
    show.check("5 packets dropped, each with its reason", counted == 5);
    Ok(())
}

/// The agent is killed and started again while pods talk.
fn restart(show: &mut Show, scene: &Scene) -> Result<()> {
    show.step("The agent of node0 is killed, and started again, under traffic");
    let [a, b, c] = &scene.pods;
    let node = &scene.lab.nodes[0];
    let mut servers = Vec::new();
    let mut flows = Vec::new();
    let places = [
        ("pod b", &b.namespace, b.ip(true)),
        ("pod c", &c.namespace, c.ip(false)),
        ("outside", &scene.lab.outside, scene.lab.outside_address(true)),
    ];
    for (name, there, to) in places {
        let (tcp, udp) = (Echo::tcp(there, to, 0)?, Echo::udp(there, to, 0)?);
        let (on_tcp, on_udp): (SocketAddr, SocketAddr) = (tcp.address, udp.address);
        flows.push((
            format!("{name}: one TCP connection"),
            Steady::tcp(&a.namespace, on_tcp)?,
        ));
        flows.push((format!("{name}: UDP"), Steady::udp(&a.namespace, on_udp)?));
        flows.push((
            format!("{name}: new TCP connections"),
            Steady::connections(&a.namespace, on_tcp)?,
        ));
        servers.extend([tcp, udp]);
    }
    let second = Duration::from_secs(1);
    thread::sleep(second);
    show.say("SIGKILL");
    node.end_agent(Signal::SIGKILL)?;
    thread::sleep(2 * second);
    let began = Instant::now();
    node.start_agent()?;
    node.wait_until_ready()?;
    show.say(&format!(
        "started again, ready after {}",
        show::time(began.elapsed())
    ));
    thread::sleep(second);
    for (name, flow) in flows {
        let tally = flow.stop();
        let lost = tally.failures.len();
        show.check(
            &format!("{name}: {} exchanges, {lost} lost", tally.exchanges),
            lost == 0,
        );
    }
    Ok(())
}

/// How to use a lab that stays.
fn usage(lab: &Lab, pods: &[Pod]) -> String {
    let [a, _, c] = pods else { return String::new() };
    let node = &lab.nodes[0];
    let millrace = cni_tests::lab::binary("MILLRACE_BIN", "millrace");
    let inside = format!(
        "nsenter --net={} {}",
        node.namespace.path().display(),
        millrace.display()
    );
    let config = format!("--config {}", node.config_file().display());
    format!(
        "  pod a to pod c         nsenter --net={} ping {}\n\
         \x20 what works             {inside} status {config}\n\
         \x20 events as they happen  {inside} monitor {config}\n\
         \x20 connections            {inside} conntrack list {config}\n\
         \x20 the agent's log        {}\n\
         \x20 remove it              cargo xtask demo --down",
        a.namespace.path().display(),
        c.ip(true),
        node.folder().join("agent.log").display(),
    )
}

fn next(show: &Show) {
    show.say("try next:");
    show.say("  cargo xtask demo --keep     the same, and the lab stays up for you to look at");
    show.say("  cargo xtask test netns      every row of these tables as a test");
    show.say("  cargo xtask test            everything that CI runs");
}
