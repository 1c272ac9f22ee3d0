//! Puts objects where the API server keeps them. Of Services it creates the fewer a second the more there are, because it
//! counts all addresses that it has given each time: 26 a second among 17,000.

use std::{net::Ipv4Addr, time::Instant};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::Request;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{Client, Config};
use serde_json::{Value, json};

use super::{
    Loader,
    loader::{AT_A_TIME, runtime},
    objects::{self, Endpoint},
};
use crate::lab::control_plane::{self, ETCD};

/// An object as the API server reads it, and the name that it has in etcd.
struct Stored {
    key: String,
    body: Value,
}

impl Stored {
    fn new(key: String, mut body: Value, kind: u8, number: usize) -> Self {
        body["metadata"]["uid"] = json!(format!("{kind:08x}-0000-4000-8000-{number:012x}"));
        // What is old and belongs to nothing that it has heard of, the API server puts away.
        body["metadata"]["creationTimestamp"] = json!(Time(Timestamp::now()));
        Self { key, body }
    }

    fn operation(&self) -> Value {
        json!({ "requestPut": control_plane::put(&self.key, &self.body) })
    }
}

impl Loader {
    /// Services with these numbers, with the addresses that they would be given and their endpoints.
    pub fn store(&self, services: std::ops::Range<usize>, endpoints: usize) -> Result<()> {
        let (begin, number) = (Instant::now(), services.len());
        let all = services.map(|number| stored(number, objects::remote(number, endpoints)));
        let runtime = runtime()?;
        self.inside
            .run(|| runtime.block_on(put(all)))
            .context("store Services")?;
        eprintln!("{number} Services in {:.0} s", begin.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Of each kind one object in a transaction: no two that somebody watches have the same version.
async fn put(all: impl Iterator<Item = [Stored; 3]>) -> Result<()> {
    let client = Client::try_from(Config::new(ETCD.parse()?))?;
    let put = |objects: [Stored; 3]| {
        let client = client.clone();
        async move {
            let transaction = json!({ "success": objects.map(|object| object.operation()) });
            let body = transaction.to_string().into_bytes();
            client
                .request_text(Request::post("/v3/kv/txn").body(body)?)
                .await?;
            anyhow::Ok(())
        }
    };
    stream::iter(all)
        .map(put)
        .buffer_unordered(AT_A_TIME)
        .try_for_each(async |()| Ok(()))
        .await
}

/// Beyond those that are chosen by hand, in the lab's range.
fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 97, 0, 0)) + number as u32)
}

/// A Service, its slice, and the object by which its address is its own.
fn stored(number: usize, endpoints: impl Iterator<Item = Endpoint>) -> [Stored; 3] {
    let (name, address) = (format!("service-{number}"), address(number));
    let mut service = objects::named_service(&name, Some(address.into())).body;
    service["metadata"]["namespace"] = json!("default");
    for (key, value) in [
        ("type", json!("ClusterIP")),
        ("clusterIPs", json!([address])),
        ("ipFamilies", json!(["IPv4"])),
        ("ipFamilyPolicy", json!("SingleStack")),
        ("internalTrafficPolicy", json!("Cluster")),
        ("sessionAffinity", json!("None")),
    ] {
        service["spec"][key] = value;
    }
    service["spec"]["ports"][0]["protocol"] = json!("TCP");
    let mut slice = objects::slice(&name, endpoints);
    slice.body["metadata"]["namespace"] = json!("default");
    let given = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": address,
            "labels": {
                "ipaddress.kubernetes.io/ip-family": "IPv4",
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": { "parentRef": { "resource": "services", "namespace": "default", "name": name } },
    });
    let key = |place: &str, name: &str| format!("/registry/{place}/{name}");
    // Its address first, so that nobody gives it to another.
    [
        Stored::new(key("ipaddresses", &address.to_string()), given, 1, number),
        Stored::new(key("services/specs/default", &name), service, 2, number),
        Stored::new(
            key("endpointslices/default", slice.name()),
            slice.body.clone(),
            3,
            number,
        ),
    ]
}
