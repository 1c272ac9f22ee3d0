//! Services in maps that are too small for all of them.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal::SIGTERM;
use serde_json::{Value, json};

use super::Node;
use crate::namespace::{Host, on_host};

const ROOM: u64 = 8;

/// A Service and as many endpoints, on addresses of its own.
fn service(number: u8, name: &str, endpoints: u8) -> Value {
    let addresses = (0..endpoints).map(|last| json!({ "addresses": [format!("10.2.{number}.{last}")] }));
    let endpoints: Vec<Value> = addresses.collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "a" },
            "spec": { "clusterIP": format!("10.96.0.{number}"), "ports": [{ "port": 80 }] },
        },
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": name, "namespace": "a", "labels": { "kubernetes.io/service-name": name } },
            "ports": [{ "port": 8080 }], "endpoints": endpoints,
        },
    ] })
}

fn node(host: &Host) -> Node {
    let node = Node::new(host);
    let file = node.path("config.yaml");
    let config = fs::read_to_string(&file).unwrap();
    let config = config.replace("maps: {", &format!("maps: {{backends: {ROOM}, "));
    // No program of a test runs for the sockets of the machine.
    let config = format!("{config}services: {{proxy: millrace, socketLb: off}}\n");
    fs::write(file, config).unwrap();
    node
}

impl Node {
    fn sets(&self, number: u8, name: &str, endpoints: u8) {
        let path = self.path(&format!("manifests/{name}.json"));
        fs::write(path, service(number, name, endpoints).to_string()).unwrap();
    }

    /// How many endpoints each ClusterIP's port has in the kernel.
    fn slots(&self) -> Vec<(String, u64)> {
        let rows = self.json("dump services --json");
        let ports = rows
            .as_array()
            .unwrap()
            .iter()
            .filter(|row| row["key"]["port"] == 80);
        let slots = ports.map(|row| {
            (
                row["key"]["addr"].as_str().unwrap().to_owned(),
                row["value"]["slots"].as_u64().unwrap(),
            )
        });
        let mut slots: Vec<_> = slots.collect();
        slots.sort();
        slots
    }

    fn becomes(&self, wanted: &[(u8, u64)]) {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(number, slots)| (format!("10.96.0.{number}"), *slots))
            .collect();
        let end = Instant::now() + Duration::from_secs(60);
        while self.slots() != wanted {
            let status = self.json("status --json");
            assert!(
                Instant::now() < end,
                "{wanted:?}: {:?} {}",
                self.slots(),
                status["agent"]["problems"]
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// It is described a moment later than it is written.
    fn says(&self, is_so: impl Fn(&[String]) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is_so(&self.problems()) {
            assert!(Instant::now() < end, "{:?}", self.problems());
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn problems(&self) -> Vec<String> {
        let status = self.json("status --json");
        let problems = status["agent"]["problems"].as_array().unwrap().iter();
        problems
            .map(|problem| problem.as_str().unwrap().to_owned())
            .collect()
    }
}

#[test]
fn a_service_without_room_is_said_and_waits_and_all_others_are_served() {
    on_host(|host| {
        let mut node = node(host);
        node.sets(1, "large", 30);
        node.sets(2, "small", 3);
        node.start("");
        node.becomes(&[(2, 3)]);
        let is_told = |problem: &String| {
            problem.starts_with("Service a/large: `maps.backends` is 8,")
                && problem.contains("this one 30: it is not served")
        };
        node.says(|problems| problems.iter().any(is_told));
        let problems = node.problems();
        let failed = |problem: &String| problem.starts_with("Services:") || problem.contains("write map");
        assert!(!problems.iter().any(failed), "{problems:?}");
        let summary = |node: &Node| node.json("status --json")["agent"]["services"].clone();
        assert!(!summary(&node)["synced"].is_null(), "the node is not behind");
        // Others change, in the same write as the one that cannot.
        node.sets(1, "large", 31);
        node.sets(2, "small", 2);
        node.becomes(&[(2, 2)]);
        // It gets its rows when it is smaller, and keeps them.
        node.sets(1, "large", 5);
        node.becomes(&[(1, 5), (2, 2)]);
        node.sets(1, "large", 20);
        node.sets(2, "small", 3);
        node.becomes(&[(1, 5), (2, 3)]);
        let keeps = "this one 20: it keeps the frontends";
        node.says(|problems| problems.iter().any(|problem| problem.contains(keeps)));
        // The next agent finds them, and takes nothing away.
        node.stop(SIGTERM);
        node.start("");
        node.becomes(&[(1, 5), (2, 3)]);
        assert_eq!(node.json("dump backends --json").as_array().unwrap().len(), 8);
        // As soon as somebody else goes there is room.
        node.sets(1, "large", 7);
        node.becomes(&[(1, 5), (2, 3)]);
        node.sets(2, "small", 0);
        node.becomes(&[(1, 7), (2, 0)]);
        node.says(|problems| !problems.iter().any(|problem| problem.contains("maps.")));
    });
}

#[test]
fn services_and_backends_are_shown_to_people() {
    on_host(|host| {
        let mut node = node(host);
        node.sets(1, "large", 30);
        node.sets(2, "small", 2);
        node.start("");
        node.becomes(&[(2, 2)]);
        node.says(|problems| problems.iter().any(|problem| problem.contains("a/large")));
        let table = |arguments: &str| {
            let output = node.run(arguments);
            assert!(output.status.success(), "{output:?}");
            let text = String::from_utf8(output.stdout).unwrap();
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            text.lines().map(words).collect::<Vec<_>>()
        };
        let header = "SERVICE FRONTEND PROTOCOL CLIENTS ANSWER BACKENDS ALGORITHM MODE HINTS AFFINITY CONNECTIONS SOCKETS OPENED";
        let small = "a/small 10.96.0.2:80 TCP inside forward 2 random - - - 0 0 0";
        let of_small = table("backends small");
        for one in ["services small", "services a/small"] {
            let shown = table(one);
            assert_eq!(shown[..3], [header, small, ""]);
            assert_eq!(shown[3..], of_small);
        }
        let all = table("services");
        assert!(all.iter().any(|line| line == small), "{all:#?}");
        let problem = all.last().unwrap();
        assert!(
            problem.contains("maps.backends") && problem.contains("not served"),
            "{all:#?}"
        );
        let backends = table("backends");
        let header = "NUMBER BACKEND PROTOCOL STATE WHERE CONNECTIONS SOCKETS SERVICES";
        assert_eq!([&backends[0], &of_small[0]], [header; 2]);
        let of_small = &of_small[1..];
        assert!(
            of_small.iter().all(|line| backends.contains(line)),
            "{backends:#?}"
        );
        let mut of_small: Vec<_> = of_small.iter().collect();
        of_small.sort_by_key(|line| line.split(' ').nth(1));
        for (line, address) in of_small.iter().zip(["10.2.2.0", "10.2.2.1"]) {
            let (_, line) = line.split_once(' ').unwrap();
            assert_eq!(line, format!("{address}:8080 TCP ready elsewhere 0 0 a/small"));
        }
        assert_eq!(of_small.len(), 2, "{backends:#?}");
        let refused = node.run("services nobody");
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(
            !refused.status.success() && said.contains("knows of no Service nobody"),
            "{said}"
        );
    });
}
