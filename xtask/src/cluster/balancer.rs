//! A small load balancer, as a cloud has one: gives Services of this type addresses that nobody else has, and leads these
//! from the fabric to the nodes that serve them.
//!
//! It runs in the fabric's namespace, where upstream's specs have their clients.

mod health;
mod service;

use std::collections::BTreeMap;
use std::io::BufReader;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use self::service::{Event, FINALIZER, Service};
use super::daemon::Daemon;
use super::fabric::{BRIDGE, nodad};
use super::namespace::{self, inside};
use super::place::Place;
use super::plan::{Layout, Plan};
use super::programs::program;
use crate::process::{command, output};

/// How often nodes are asked whether they have endpoints.
const INTERVAL: Duration = Duration::from_millis(500);

/// Starts the process that does it.
pub(crate) fn start(place: &Place, plan: &Plan) -> Result<()> {
    namespace::ip(&place.fabric(), &clients(plan))?;
    // Connections of one client are spread, too.
    let policies = ["ipv4", "ipv6"].map(|family| format!("net.{family}.fib_multipath_hash_policy=1"));
    output(inside(&place.fabric(), "sysctl").arg("-qw").args(policies))?;
    let own = std::env::current_exe().context("finding this program")?;
    let mut command = inside(&place.fabric(), own);
    command.args(["cluster", "--name", &place.to_string(), "balancer"]);
    Daemon::start(place, "balancer", command).map(drop)
}

/// Clients of a load balancer have addresses that are no neighbours of the nodes'.
fn clients(plan: &Plan) -> String {
    let add = |layout: &Layout| {
        format!(
            "address add {} dev {BRIDGE}{}\n",
            layout.client,
            nodad(layout.client)
        )
    };
    plan.layouts().iter().map(add).collect()
}

/// What that process does, until it is ended.
pub(crate) fn run(place: &Place) -> Result<()> {
    let plan = place.plan()?;
    let (sender, events) = mpsc::channel();
    let watched = place.clone();
    thread::spawn(move || watch(&watched, &sender));
    let mut balancer = Balancer {
        place,
        plan,
        held: BTreeMap::new(),
    };
    let mut looked = Instant::now();
    loop {
        match events.recv_timeout(INTERVAL) {
            Ok(event) => balancer.take(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("nobody watches Services any more"),
        }
        if looked.elapsed() >= INTERVAL {
            balancer.look_again();
            looked = Instant::now();
        }
    }
}

fn kubectl(place: &Place) -> Command {
    let mut kubectl = command(program("kubectl"));
    kubectl.arg("--kubeconfig").arg(place.fabric_kubeconfig());
    kubectl
}

/// Tells every change of a Service. A watch ends now and then; the next one begins with all there are.
fn watch(place: &Place, sender: &Sender<Event>) {
    loop {
        if let Err(error) = watch_once(place, sender) {
            eprintln!("{error:#}");
        }
        thread::sleep(INTERVAL);
    }
}

fn watch_once(place: &Place, sender: &Sender<Event>) -> Result<()> {
    let mut watch = kubectl(place);
    watch.args(["get", "services", "--all-namespaces", "--output=json"]);
    let mut child = watch
        .args(["--watch", "--output-watch-events"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start kubectl")?;
    let stdout = child.stdout.take().context("kubectl's output is not piped")?;
    let events = serde_json::Deserializer::from_reader(BufReader::new(stdout)).into_iter::<Event>();
    for event in events {
        sender.send(event.context("an event of a Service")?)?;
    }
    child.wait().context("waiting for kubectl").map(drop)
}

struct Balancer<'a> {
    place: &'a Place,
    plan: Plan,
    held: BTreeMap<String, Held>,
}

/// A Service that has addresses.
struct Held {
    number: u8,
    service: Service,
    /// The routes that lead to it.
    routes: String,
}

impl Balancer<'_> {
    fn take(&mut self, event: Event) {
        let (name, gone) = (event.object.name(), event.is_last());
        let done = if event.object.wants_balancer() && !gone {
            self.serve(event.object)
        } else {
            self.leave(&event.object, gone)
        };
        if let Err(error) = done {
            eprintln!("{name}: {error:#}");
        }
    }

    fn look_again(&mut self) {
        let names: Vec<_> = self.held.keys().cloned().collect();
        for name in names {
            if let Err(error) = self.route(&name) {
                eprintln!("{name}: {error:#}");
            }
        }
    }

    fn serve(&mut self, service: Service) -> Result<()> {
        let name = service.name();
        let number = match self.held.get(&name) {
            Some(held) => held.number,
            None => self.free_number()?,
        };
        if !service.is_marked() {
            let marks = service.finalizers().chain([FINALIZER]).collect::<Vec<_>>();
            self.patch(&service, "", &json!({"metadata": {"finalizers": marks}}))?;
        }
        let addresses = addresses(&self.plan, &service, number);
        let told = service.is_told(&addresses);
        let held = Held {
            number,
            routes: self
                .held
                .remove(&name)
                .map(|held| held.routes)
                .unwrap_or_default(),
            service,
        };
        self.held.insert(name.clone(), held);
        self.route(&name)?;
        let Some(held) = self.held.get(&name).filter(|_| !told) else {
            return Ok(());
        };
        let ingress: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        self.patch(&held.service, "status", &status)
    }

    fn free_number(&self) -> Result<u8> {
        let taken = |number: &u8| self.held.values().any(|held| held.number == *number);
        (1..=250)
            .find(|number| !taken(number))
            .context("all addresses are taken")
    }

    /// Leads a Service's addresses to the nodes that serve it now.
    fn route(&mut self, name: &str) -> Result<()> {
        let Some(held) = self.held.get_mut(name) else {
            return Ok(());
        };
        let mut routes = String::new();
        for layout in self.plan.layouts() {
            let Some(address) = held.service.has(layout).then(|| layout.balanced(held.number)) else {
                continue;
            };
            let nodes = self.plan.nodes().map(|node| layout.node(node));
            let mut serving: Vec<_> = match held.service.health_port() {
                Some(port) => nodes.filter(|node| health::serves(*node, port)).collect(),
                None => nodes.collect(),
            };
            if held.service.is_sticky() {
                // A node remembers its clients for itself.
                serving.truncate(1);
            }
            routes += &route(&address, &layout.client, &serving);
        }
        if held.routes != routes {
            namespace::ip(&self.place.fabric(), &routes)?;
            held.routes = routes;
        }
        Ok(())
    }

    fn leave(&mut self, service: &Service, gone: bool) -> Result<()> {
        if let Some(held) = self.held.remove(&service.name()) {
            let addresses = addresses(&self.plan, &held.service, held.number);
            let lines: String = addresses.iter().map(refused).collect();
            namespace::ip(&self.place.fabric(), &lines)?;
        }
        if gone || !service.is_marked() {
            return Ok(());
        }
        self.patch(service, "status", &json!({"status": {"loadBalancer": null}}))?;
        let others = service.finalizers().filter(|mark| *mark != FINALIZER);
        let marks = json!({"metadata": {"finalizers": others.collect::<Vec<_>>()}});
        self.patch(service, "", &marks)
    }

    fn patch(&self, service: &Service, part: &str, change: &Value) -> Result<()> {
        let mut patch = kubectl(self.place);
        patch.args(["patch", "service", &service.metadata.name]);
        patch.args(["--namespace", &service.metadata.namespace, "--type=merge"]);
        if !part.is_empty() {
            patch.arg(format!("--subresource={part}"));
        }
        output(patch.arg(format!("--patch={change}"))).map(drop)
    }
}

/// What a Service is given: one address of each of its families.
fn addresses(plan: &Plan, service: &Service, number: u8) -> Vec<IpAddr> {
    let layouts = plan.layouts().iter().filter(|layout| service.has(layout));
    layouts.map(|layout| layout.balanced(number)).collect()
}

/// The fabric itself answers, and nobody listens there.
fn refused(address: &IpAddr) -> String {
    format!("route replace local {address} dev lo table main\n")
}

/// A line for `ip`.
fn route(address: &IpAddr, client: &IpAddr, nodes: &[IpAddr]) -> String {
    match nodes {
        [] => refused(address),
        [node] => format!("route replace {address} via {node} src {client}\n"),
        nodes => {
            let hops: String = nodes.iter().map(|node| format!(" nexthop via {node}")).collect();
            format!("route replace {address} src {client}{hops}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_leads_to_all_that_serve_it_and_nowhere_else() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let nodes = ["192.0.2.1", "192.0.2.2"].map(address);
        let line = |nodes| route(&address("203.0.113.1"), &address("198.51.100.1"), nodes);
        assert_eq!(line(&[]), "route replace local 203.0.113.1 dev lo table main\n");
        assert_eq!(
            line(&nodes[..1]),
            "route replace 203.0.113.1 via 192.0.2.1 src 198.51.100.1\n"
        );
        assert_eq!(
            line(&nodes),
            "route replace 203.0.113.1 src 198.51.100.1 nexthop via 192.0.2.1 nexthop via 192.0.2.2\n"
        );
    }
}
