//! Objects that come, change, move and go by chance, while a server and an agent die.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    thread,
    time::Duration,
};

use cni_tests::{
    bench::cluster::{
        Change, Loader,
        objects::{self, Endpoint, NODES, Object, PODS, SLICES},
    },
    lab::{ControlPlane, Lab, Node, Signal, control_plane::pod},
};
use serde_json::{Value, json};

use crate::{eventually, needs_control_plane, services};

const CHANGES: usize = 300;
/// Of each kind, by number.
const PLACES: usize = 6;
const NAMES: usize = 24;
const SERVICES: usize = 4;

/// The same numbers in each run (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}

/// What there is.
struct World {
    chance: Chance,
    /// Where each pod is, and its address.
    pods: BTreeMap<usize, (usize, IpAddr)>,
    nodes: BTreeSet<usize>,
    /// The addresses behind each Service.
    slices: BTreeMap<usize, BTreeSet<IpAddr>>,
}

fn pod_object(number: usize, (place, ip): (usize, IpAddr)) -> Object {
    Object {
        collection: PODS,
        body: pod(&format!("p{number}"), &format!("far-{place}"), &[&ip.to_string()]),
    }
}

fn node_object(number: usize, host: usize) -> Object {
    let range = format!("10.80.{number}.0/24");
    let body = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("far-{number}") },
        "spec": { "podCIDR": range, "podCIDRs": [range] },
        "status": { "addresses": [{ "type": "InternalIP", "address": format!("192.168.64.{host}") }] },
    });
    Object {
        collection: NODES,
        body,
    }
}

impl World {
    /// In the range of any node: addresses move with their pods.
    fn address(&mut self, number: usize) -> IpAddr {
        [10, 80, self.chance.below(PLACES) as u8, 2 + number as u8].into()
    }

    fn step(&mut self) -> Vec<Change> {
        match self.chance.below(10) {
            0..6 => self.change_pod(),
            6..8 => self.change_slice(),
            _ => self.change_node(),
        }
    }

    fn change_pod(&mut self) -> Vec<Change> {
        let number = self.chance.below(NAMES);
        let (place, address) = (self.chance.below(PLACES), self.address(number));
        let delete = Change::delete(PODS, &format!("p{number}"));
        let Some(known) = self.pods.get(&number).copied() else {
            self.pods.insert(number, (place, address));
            return Change::create(&pod_object(number, (place, address)));
        };
        match self.chance.below(3) {
            0 => {
                self.pods.remove(&number);
                vec![delete]
            }
            1 => {
                self.pods.insert(number, (known.0, address));
                vec![Change::status(&pod_object(number, (known.0, address)))]
            }
            // Moves with its address.
            _ => {
                self.pods.insert(number, (place, known.1));
                let create = Change::create(&pod_object(number, (place, known.1)));
                [vec![delete], create].concat()
            }
        }
    }

    fn change_slice(&mut self) -> Vec<Change> {
        let number = self.chance.below(SERVICES);
        let service = format!("web-{number}");
        let mut endpoints = BTreeMap::new();
        for _ in 0..self.chance.below(5) {
            let pod = self.chance.below(NAMES);
            endpoints.extend(self.pods.get(&pod).map(|(place, ip)| (*ip, (*place, pod))));
        }
        let slice = objects::slice(
            &service,
            endpoints.iter().map(|(ip, (place, pod))| Endpoint {
                address: *ip,
                node: format!("far-{place}"),
                zone: "a".to_owned(),
                pod: format!("p{pod}"),
            }),
        );
        let known = self.slices.contains_key(&number);
        if known && self.chance.below(3) == 0 {
            self.slices.remove(&number);
            return vec![Change::delete(SLICES, slice.name())];
        }
        self.slices.insert(number, endpoints.into_keys().collect());
        if known {
            let endpoints = json!({ "endpoints": slice.body["endpoints"] });
            vec![Change::merge(format!("{SLICES}/{}", slice.name()), endpoints)]
        } else {
            Change::create(&slice)
        }
    }

    fn change_node(&mut self) -> Vec<Change> {
        let number = self.chance.below(PLACES);
        let object = node_object(number, 100 + number + 50 * self.chance.below(2));
        if self.nodes.insert(number) {
            return Change::create(&object);
        }
        if self.chance.below(2) == 0 {
            return vec![Change::status(&object)];
        }
        self.nodes.remove(&number);
        vec![Change::delete(NODES, object.name())]
    }
}

/// What the agent makes of the cluster, without numbers that tell of its past.
fn view(node: &Node) -> BTreeSet<String> {
    let mut view: BTreeSet<String> = node.intent().unwrap().into_iter().collect();
    for (name, behind) in behind(node) {
        view.insert(format!("{name}: {behind:?}"));
    }
    view
}

/// The addresses behind each address of a Service.
fn behind(node: &Node) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let services = node.ask(["services"]).unwrap();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut all = BTreeMap::new();
    for service in list(&services) {
        for front in list(&service["frontends"]) {
            let numbers = list(&front["backends"]);
            let serving = list(&service["backends"])
                .into_iter()
                .filter(|backend| numbers.contains(&backend["number"]));
            let addresses = serving.map(|backend| backend["address"].as_str().unwrap().parse().unwrap());
            let name = service["name"]["name"].as_str().unwrap();
            all.insert(format!("{name} {}", front["address"]), addresses.collect());
        }
    }
    all
}

fn follows(node: &Node, world: &World) {
    eventually(|| {
        let mut peers = node.dump("peers").unwrap();
        peers.retain(|peer| peer.contains("10.80."));
        let known = |ip: &IpAddr| peers.iter().any(|peer| peer.contains(&format!("\"{ip}\"")));
        let missing: Vec<_> = world.pods.values().filter(|(_, ip)| !known(ip)).collect();
        let right = missing.is_empty() && peers.len() == world.pods.len();
        (!right).then(|| format!("{missing:?} missing in {peers:#?}"))
    });
    let wanted: BTreeMap<String, BTreeSet<IpAddr>> = (0..SERVICES)
        .map(|number| {
            let name = format!("web-{number} \"10.96.1.{number}\"");
            (name, world.slices.get(&number).cloned().unwrap_or_default())
        })
        .collect();
    eventually(|| {
        let mut found = behind(node);
        found.retain(|name, _| name.starts_with("web-"));
        (found != wanted).then(|| format!("{found:#?} instead of {wanted:#?}"))
    });
}

fn loader(control: &ControlPlane, lab: &Lab) -> Loader {
    Loader::new(&lab.fabric, &control.folder().join("admin.kubeconfig")).unwrap()
}

#[test]
fn rel_36_after_a_churn_with_deaths_the_agent_is_where_one_is_that_begins() {
    needs_control_plane!();
    let (mut control, lab) = services::start();
    let node = &lab.nodes[0];
    let addresses = (0..SERVICES).map(|number| (number, IpAddr::from([10, 96, 1, number as u8])));
    let all = addresses.map(|(number, ip)| objects::named_service(&format!("web-{number}"), Some(ip)));
    loader(&control, &lab).create("Services", all.collect()).unwrap();
    let mut world = World {
        chance: Chance(1),
        pods: BTreeMap::new(),
        nodes: BTreeSet::new(),
        slices: BTreeMap::new(),
    };
    let mut editor = loader(&control, &lab).editor().unwrap();
    for number in 0..CHANGES {
        match number {
            // Connections and watches begin anew.
            100 => {
                let server = control.addresses[0];
                control.kill_server(server).unwrap();
                control.start_server(server).unwrap();
                editor = loader(&control, &lab).editor().unwrap();
            }
            // What happens now it does not see.
            180 => node.end_agent(Signal::SIGKILL).unwrap(),
            220 => node.start_agent().unwrap(),
            _ => {}
        }
        for change in world.step() {
            editor.make(&change).unwrap();
        }
    }
    node.wait_until_ready().unwrap();
    follows(node, &world);
    let mut lasting = view(node);
    eventually(|| {
        thread::sleep(Duration::from_millis(500));
        let now = view(node);
        let same = now == lasting;
        lasting = now;
        (!same).then(|| "it still changes".to_owned())
    });
    node.end_agent(Signal::SIGTERM).unwrap();
    node.uninstall().unwrap();
    node.start_agent().unwrap();
    node.wait_until_ready().unwrap();
    follows(node, &world);
    eventually(|| {
        let fresh = view(node);
        let differ: Vec<_> = fresh.symmetric_difference(&lasting).collect();
        (!differ.is_empty()).then(|| format!("{differ:#?}"))
    });
}
