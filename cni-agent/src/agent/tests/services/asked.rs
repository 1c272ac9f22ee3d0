//! What people are told who ask for Services.

use tokio::sync::oneshot;

use super::*;
use crate::{observe::admin::Inquiry, services::Description};

async fn ask(handle: &Handle, name: &str) -> Vec<Description> {
    let (reply, answer) = oneshot::channel();
    let inquiry = Inquiry::Describe {
        name: name.to_owned(),
        reply,
    };
    handle.inquiries.send(inquiry).await.unwrap();
    answer.await.unwrap()
}

/// Name, frontends, and why it is not served.
async fn told(handle: &Handle, name: &str) -> Vec<(String, usize, Option<String>)> {
    let told = ask(handle, name).await.into_iter();
    told.map(|one| (one.name.to_string(), one.frontends.len(), one.unserved))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_names_a_service_is_told_why_it_is_not_served() {
    let mut machine = serving();
    write(&machine, &["10.2.0.5"]);
    let object = |name: &str, spec: Value| {
        let metadata = json!({ "name": name, "namespace": "a" });
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec })
    };
    let unserved = [
        object(
            "external",
            json!({ "type": "ExternalName", "externalName": "example.org" }),
        ),
        object(
            "headless",
            json!({ "clusterIP": "None", "ports": [{ "port": 80 }] }),
        ),
    ];
    write_file(&machine, "unserved", &list(&unserved));
    let handle = machine.start().await;
    becomes(&machine, &["10.2.0.5"]).await;
    let both = ["new", "web"].map(|name| unread(name, "bad")).to_vec();
    handle.events.send(Event::Unread(both)).await.unwrap();
    until(&handle, |status| troubles(status).unread == 2).await;
    for (name, reason) in [
        ("external", "it is ExternalName"),
        ("a/headless", "it is headless"),
        ("new", "it cannot be read: bad"),
    ] {
        let expected = (
            format!("a/{}", name.trim_start_matches("a/")),
            0,
            Some(reason.to_owned()),
        );
        assert_eq!(told(&handle, name).await, [expected]);
    }
    assert_eq!(told(&handle, "nobody").await, []);
    // Who names none is told of those that should be served.
    let names: Vec<String> = told(&handle, "").await.into_iter().map(|one| one.0).collect();
    assert_eq!(names, ["a/new", "a/web"]);
    let web = ask(&handle, "web").await.remove(0);
    assert_eq!((web.unserved, web.problems), (None, vec!["bad".to_owned()]));
    machine.stop().await;
}
