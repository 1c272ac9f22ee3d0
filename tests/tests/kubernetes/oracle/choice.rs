//! Services whose endpoints are not all alike: who is ready or leaves, and whom hints are for.

use serde_json::{Value, json};

use super::services::{Definition, Part::Slices};

/// The first node's zone, and the one to which it moves. Nobody is in the third.
pub(super) const HERE: &str = "here";
pub(super) const THERE: &str = "there";
const ELSEWHERE: &str = "elsewhere";

/// It still serves.
pub(super) fn leaving() -> Value {
    json!({ "ready": false, "serving": true, "terminating": true })
}

fn left() -> Value {
    json!({ "ready": false, "serving": false, "terminating": true })
}

pub(super) fn not_ready() -> Value {
    json!({ "ready": false, "serving": false, "terminating": false })
}

fn ready() -> Value {
    json!({ "ready": true, "serving": true, "terminating": false })
}

fn zone(name: &str) -> Value {
    json!({ "forZones": [{ "name": name }] })
}

fn node(name: &str) -> Value {
    json!({ "forNodes": [{ "name": name }] })
}

/// One here and one there.
pub(super) fn in_zones(number: u8) -> Definition {
    hinted(Definition::new(number, &["a", "b"]), [zone(HERE), zone(THERE)])
}

/// With a hint for each endpoint, or none.
fn hinted<const N: usize>(definition: Definition, hints: [Value; N]) -> Definition {
    let hints = hints.into_iter().enumerate();
    hints.fold(definition, |definition, (place, hint)| {
        definition.edit(Slices(place), "/endpoints/0/hints", hint)
    })
}

pub(super) fn services() -> Vec<Definition> {
    let of = Definition::with_conditions;
    let both = |number| Definition::new(number, &["a", "b"]);
    let mut published = of(126, &[("a", not_ready())]);
    published.with("publishNotReadyAddresses", json!(true));
    let mut distributed = both(140);
    distributed.with("trafficDistribution", json!("PreferSameNode"));
    let in_zone = |of: &str| json!({ "forNodes": [{ "name": ELSEWHERE }], "forZones": [{ "name": of }] });
    let third_not_ready = of(134, &[("a", ready()), ("b", ready()), ("c", not_ready())]);
    let here = Definition::new(139, &["a", "b", "c"])
        .load_balancer("Local")
        .local_inside();
    vec![
        of(120, &[("a", ready()), ("b", leaving())]).node_ports("Cluster"),
        of(121, &[("a", leaving()), ("b", left())]),
        of(122, &[("a", leaving()), ("b", ready())]).load_balancer("Local"),
        of(123, &[("a", leaving()), ("b", ready())]).local_inside(),
        of(124, &[("a", ready()), ("c", leaving())])
            .load_balancer("Local")
            .local_inside(),
        of(125, &[("a", not_ready()), ("b", ready())]),
        published,
        of(127, &[("a", not_ready()), ("b", ready())])
            .load_balancer("Local")
            .local_inside(),
        Definition::new(128, &["a", "b", "c"]).load_balancer("Local"),
        hinted(both(130).node_ports("Cluster"), [node("node0"), node("node1")]),
        hinted(both(131), [node("node0"), Value::Null]),
        hinted(both(132), [node(ELSEWHERE), node(ELSEWHERE)]),
        hinted(both(133), [in_zone(HERE), in_zone(THERE)]),
        hinted(third_not_ready, [zone(HERE), zone(THERE), Value::Null]),
        in_zones(135).node_ports("Cluster"),
        hinted(both(136), [zone(HERE), Value::Null]),
        hinted(both(137), [zone(THERE), zone(ELSEWHERE)]),
        hinted(
            of(138, &[("a", leaving()), ("b", leaving())]),
            [zone(HERE), zone(THERE)],
        ),
        hinted(here, [zone(THERE), zone(HERE), zone(HERE)]),
        distributed,
    ]
}
