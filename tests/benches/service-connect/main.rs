//! Connections a second through a ClusterIP, and requests a second over one that stands, against the address of the pod behind it, and against the real kube-proxy on
//! the same API server.

use std::time::Duration;

use anyhow::{Context, Result};
use cni_tests::bench::cluster::{Crowd, MILLRACE, Mode, Place};
use cni_tests::bench::load::{Cpus, Ends, connect_by, connected_and_reset, requests_by};
use cni_tests::bench::series::{Samples, turns};
use cni_tests::bench::{Command, Report};
use serde_json::json;

const SERVICES: [u32; 3] = [10, 1_000, 10_000];
/// Of each of those that nobody dials.
const ENDPOINTS: usize = 1;
const TIME: Duration = Duration::from_millis(500);
/// For a peer to have the Service that is dialled.
const PATIENCE: Duration = Duration::from_secs(60);
const GOAL: f64 = 0.97;

/// What is dialled.
#[derive(Clone, Copy, Debug)]
enum Dialled {
    Pod,
    ClusterIp,
}

impl Dialled {
    const ALL: [Self; 2] = [Self::Pod, Self::ClusterIp];
}

fn contender(place: &str, dialled: Dialled) -> String {
    match dialled {
        Dialled::Pod => format!("{place}, pod address"),
        Dialled::ClusterIp => format!("{place}, ClusterIP"),
    }
}

/// Who exchanges the ClusterIP for a pod's address: each socket when it connects, or each packet on its way.
const SOCKET_LB: [&str; 2] = ["off", "all"];

/// What is measured: new connections, and what goes over one that stands.
#[derive(Clone, Copy, Debug)]
enum Work {
    Connects,
    Requests,
}

impl Work {
    const ALL: [Self; 2] = [Self::Connects, Self::Requests];

    fn name(self) -> &'static str {
        match self {
            Self::Connects => "connects",
            Self::Requests => "requests",
        }
    }
}

fn metric(work: Work, services: u32, socket_lb: &str, cpus: Cpus) -> String {
    format!(
        "{}, {services} Services, socketLb {socket_lb}, {}",
        work.name(),
        cpus.name()
    )
}

/// Does what a process of the place's machine does: where one is Millrace's node, its programs for sockets see it.
fn on_the_machine<T: Send>(
    crowd: &Crowd,
    place: &Place,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    match place.name {
        MILLRACE => crowd.node()?.with_sockets(work),
        _ => work(),
    }
}

fn measure(work: Work, place: &Place, dialled: Dialled, cpus: Cpus, time: Duration) -> Result<f64> {
    let server = place.servers.first().context("no server")?;
    let ends = Ends {
        client: place.client.duplicate()?,
        server: server.inside.duplicate()?,
        ip: server.ip,
    };
    let to = match dialled {
        Dialled::Pod => (server.ip, Place::port()).into(),
        Dialled::ClusterIp => place.dialled(),
    };
    let rate = match work {
        Work::Connects => connect_by(&ends, Place::port(), to, cpus, time),
        Work::Requests => requests_by(&ends, Place::port(), to, cpus, time),
    };
    rate.with_context(|| place.name.to_owned())
}

/// Waits until the ClusterIP leads to the pod.
fn wait_for(place: &Place) -> Result<()> {
    let server = place.servers.first().context("no server")?;
    let listener = server
        .inside
        .run(|| std::net::TcpListener::bind((server.ip, Place::port())))?;
    let begin = std::time::Instant::now();
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| {
            listener
                .accept()
                .map(|(stream, _)| socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)))
        });
        let reached = loop {
            let tried = place
                .client
                .run(|| std::net::TcpStream::connect_timeout(&place.dialled(), Duration::from_millis(500)));
            if tried.is_ok() || begin.elapsed() > PATIENCE {
                break tried;
            }
        };
        if reached.is_err() {
            // Whoever waits for a connection gets one.
            let _ = server
                .inside
                .run(|| connected_and_reset((server.ip, Place::port()).into()));
        }
        let _ = accepting.join();
        reached
            .map(drop)
            .with_context(|| format!("{} does not lead to its pod", place.name))
    })
}

fn works() -> impl Iterator<Item = (Work, Cpus)> {
    let with_each = |work: &'static Work| Cpus::possible().iter().map(move |cpus| (*work, *cpus));
    Work::ALL.iter().flat_map(with_each)
}

/// What is compared directly stands side by side.
fn each_way(round: usize) -> impl Iterator<Item = (Work, Dialled, Cpus)> {
    let dialled = move || turns(Dialled::ALL.len(), round).map(|turn| Dialled::ALL[turn]);
    works().flat_map(move |(work, cpus)| dialled().map(move |dialled| (work, dialled, cpus)))
}

fn main() -> Result<()> {
    let command = Command::read()?;
    let services = command.services(&SERVICES);
    let mut samples = Samples::default();
    let crowd = Crowd::start(&services)?;
    let peers = crowd.peers(&services)?;
    let places = Place::of_all(&crowd, &peers, 1)?;
    for number in &services {
        crowd.fill(*number as usize, ENDPOINTS)?;
        for socket_lb in SOCKET_LB {
            crowd.change(&json!({ "socketLb": socket_lb }))?;
            crowd.wait_for(*number as usize)?;
            for place in &places {
                on_the_machine(&crowd, place, || wait_for(place))?;
            }
            for peer in &peers {
                peer.wait_until_quiet(PATIENCE)?;
            }
            for round in 0..command.rounds {
                for turn in turns(places.len(), round) {
                    let place = &places[turn];
                    let _others = crowd.alone(place.name, &peers)?;
                    for (work, dialled, cpus) in each_way(round) {
                        let measure = || measure(work, place, dialled, cpus, TIME);
                        let rate = on_the_machine(&crowd, place, measure)?;
                        let metric = metric(work, *number, socket_lb, cpus);
                        samples.add(&contender(place.name, dialled), &metric, "1/s", rate);
                    }
                }
            }
        }
    }
    drop(places);
    drop(peers);
    let mut report = Report::new("service-connect", command.rounds, &samples);
    judge(&services, &mut report, &samples);
    command.publish(&report)
}

fn judge(services: &[u32], report: &mut Report, samples: &Samples) {
    let ours = contender(MILLRACE, Dialled::ClusterIp);
    let all = services
        .iter()
        .flat_map(|number| SOCKET_LB.map(|socket_lb| (number, socket_lb)));
    for (number, socket_lb) in all {
        for (work, cpus) in works() {
            let metric = metric(work, *number, socket_lb, cpus);
            let mut ratio = |to: &str, goal| {
                report.ratio(&metric, &ours, to, samples.ratio(&ours, to, &metric), goal);
            };
            let connects = matches!(work, Work::Connects);
            // Where sockets are connected to the pod, nothing is done to a packet.
            let the_same = connects || socket_lb == "all";
            ratio(&contender(MILLRACE, Dialled::Pod), the_same.then_some(GOAL));
            for (mode, goal) in [(Mode::Nftables, 1.25), (Mode::Iptables, 1.5)] {
                let goal = (connects && *number >= 10_000).then_some(goal);
                ratio(&contender(mode.name(), Dialled::ClusterIp), goal);
            }
        }
    }
}
