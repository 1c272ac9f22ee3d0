//! Connections a second through a ClusterIP, against the address of the pod behind it, and against the real kube-proxy on
//! the same API server.

use std::time::Duration;

use anyhow::{Context, Result};
use cni_tests::bench::cluster::{Crowd, MILLRACE, Mode, Place};
use cni_tests::bench::load::{Cpus, Ends, connect_by, connected_and_reset};
use cni_tests::bench::series::{Samples, turns};
use cni_tests::bench::{Command, Report};
use serde_json::json;

const SERVICES: [u32; 3] = [10, 1_000, 10_000];
/// Of each of those that nobody dials.
const ENDPOINTS: usize = 1;
const TIME: Duration = Duration::from_millis(300);
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

fn metric(services: u32, cpus: Cpus) -> String {
    format!("connects, {services} Services, {}", cpus.name())
}

fn connect(place: &Place, dialled: Dialled, cpus: Cpus, time: Duration) -> Result<f64> {
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
    connect_by(&ends, Place::port(), to, cpus, time).with_context(|| place.name.to_owned())
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

fn main() -> Result<()> {
    let command = Command::read()?;
    let services = command.services(&SERVICES);
    let mut samples = Samples::default();
    let crowd = Crowd::start(&json!({}))?;
    let peers = crowd.peers()?;
    let places = Place::of_all(&crowd, &peers, 1)?;
    for number in &services {
        crowd.fill(*number as usize, ENDPOINTS)?;
        crowd.wait_for(*number as usize)?;
        for place in &places {
            wait_for(place)?;
        }
        for peer in &peers {
            peer.wait_until_quiet(PATIENCE)?;
        }
        for round in 0..command.rounds {
            for turn in turns(places.len(), round) {
                for dialled in Dialled::ALL {
                    for cpus in Cpus::possible() {
                        let place = &places[turn];
                        let rate = connect(place, dialled, *cpus, TIME)?;
                        samples.add(
                            &contender(place.name, dialled),
                            &metric(*number, *cpus),
                            "1/s",
                            rate,
                        );
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
    for number in services {
        for cpus in Cpus::possible() {
            let metric = metric(*number, *cpus);
            let mut ratio = |to: &str, goal| {
                report.ratio(&metric, &ours, to, samples.ratio(&ours, to, &metric), goal);
            };
            ratio(&contender(MILLRACE, Dialled::Pod), Some(GOAL));
            for (mode, goal) in [(Mode::Nftables, 1.25), (Mode::Iptables, 1.5)] {
                let goal = (*number >= 10_000).then_some(goal);
                ratio(&contender(mode.name(), Dialled::ClusterIp), goal);
            }
        }
    }
}
