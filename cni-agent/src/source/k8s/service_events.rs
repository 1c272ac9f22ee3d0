//! Events on Services that are not served as they ask, where `kubectl describe service` shows them.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::watch, time::sleep};

use super::{
    fault,
    node_events::{CONTROLLER, EVENTS, note},
    pace,
    watch::Office,
};
use crate::{
    model::{NamespacedName, ServiceProblem},
    state::of_host_ports,
    status::Status,
};

/// Between events: a thousand bad Services must not fill the store at once.
const PAUSE: Duration = Duration::from_secs(1);

/// Says what is wrong with Services, each thing once, until nobody listens.
pub(super) async fn announce(office: Office, mut status: watch::Receiver<Arc<Status>>) {
    let desk = Arc::clone(&office.desk);
    let client = office.servers.client(move || desk.fine(EVENTS));
    let mut told: BTreeMap<NamespacedName, String> = BTreeMap::new();
    loop {
        let Some(problem) = next(&status.borrow_and_update(), &mut told) else {
            match status.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        };
        match tell(&client, &office.node, &problem).await {
            Ok(()) => _ = told.insert(problem.service, problem.text),
            // It would stand in the way of all others.
            Err(error) if is_refused_for_good(&error) => {
                tracing::debug!(service = %problem.service, %error, "no event can be made of this");
                told.insert(problem.service, problem.text);
            }
            Err(error) => {
                if let Some(text) = fault::of_request("create", EVENTS, &error) {
                    office.desk.fault(EVENTS, text);
                }
            }
        }
        sleep(pace::around(PAUSE)).await;
    }
}

/// The first that has not been told. What is over may be told again.
fn next(status: &Status, told: &mut BTreeMap<NamespacedName, String>) -> Option<ServiceProblem> {
    let troubled = status
        .services
        .as_ref()
        .map_or(&[][..], |services| &services.troubled);
    let still: BTreeSet<&NamespacedName> = troubled.iter().map(|problem| &problem.service).collect();
    told.retain(|name, _| still.contains(name));
    let mut news = troubled
        .iter()
        .filter(|problem| told.get(&problem.service) != Some(&problem.text));
    news.next().cloned()
}

async fn tell(client: &Client, node: &str, problem: &ServiceProblem) -> Result<(), kube::Error> {
    let api = Api::<Event>::namespaced(client.clone(), &problem.service.namespace);
    match api.create(&PostParams::default(), &event(node, problem)).await {
        // Another agent has said it.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        result => result.map(drop),
    }
}

/// No event can be about this object: its namespace is gone, or about to go.
fn is_refused_for_good(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    match status.code {
        403 => causes
            .into_iter()
            .any(|cause| cause.reason == "NamespaceTerminating"),
        404 | 422 => true,
        _ => false,
    }
}

/// The name follows from what it says, so that agents that say the same say it once.
fn event(node: &str, problem: &ServiceProblem) -> Event {
    let mut hasher = DefaultHasher::new();
    problem.hash(&mut hasher);
    let NamespacedName { namespace, name } = &problem.service;
    let (kind, name) = match of_host_ports(name) {
        Some(pod) => ("Pod", pod),
        None => ("Service", name.as_str()),
    };
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:016x}", hasher.finish())),
            namespace: Some(namespace.to_string()),
            ..ObjectMeta::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some("MillraceNotServed".to_owned()),
        action: Some("Serve".to_owned()),
        note: Some(note(problem.text.clone())),
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(node.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace: Some(namespace.to_string()),
            name: Some(name.to_owned()),
            uid: Some(problem.uid.clone()).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::ServicesStatus;

    fn problem(service: &str, text: &str) -> ServiceProblem {
        ServiceProblem {
            service: NamespacedName {
                namespace: "n".into(),
                name: service.into(),
            },
            uid: "u".into(),
            text: text.into(),
        }
    }

    fn status(troubled: &[ServiceProblem]) -> Status {
        Status {
            services: Some(ServicesStatus {
                troubled: troubled.to_vec(),
                ..ServicesStatus::default()
            }),
            ..Status::default()
        }
    }

    #[test]
    fn each_thing_is_said_once_until_it_is_over() {
        let mut told = BTreeMap::new();
        let (bad, worse) = (problem("a", "bad"), problem("a", "worse"));
        for (troubled, said) in [
            (vec![bad.clone()], Some(&bad)),
            (vec![bad.clone()], None),
            (vec![worse.clone()], Some(&worse)),
            (vec![], None),
            (vec![worse.clone()], Some(&worse)),
        ] {
            let next = next(&status(&troubled), &mut told);
            assert_eq!(next.as_ref(), said);
            told.extend(next.map(|problem| (problem.service, problem.text)));
        }
        assert_eq!(next(&Status::default(), &mut told), None);
    }

    #[test]
    fn agents_that_say_the_same_say_it_by_the_same_name() {
        let name = |node: &str, text: &str| event(node, &problem("a", text)).metadata.name.unwrap();
        assert_eq!(name("x", "bad"), name("y", "bad"));
        assert_ne!(name("x", "bad"), name("x", "worse"));
        assert!(name("x", "bad").starts_with("a."));
    }

    #[test]
    fn what_is_wrong_with_a_pods_host_ports_is_said_of_the_pod() {
        let event = event("x", &problem("pod/a", "bad"));
        assert!(event.metadata.name.unwrap().starts_with("a."));
        let regarding = event.regarding.unwrap();
        assert_eq!(
            (regarding.kind.as_deref(), regarding.name.as_deref()),
            (Some("Pod"), Some("a"))
        );
    }

    #[test]
    fn what_the_server_never_takes_does_not_keep_others_waiting() {
        let refusal = |code: u16, reason: &str| {
            let status = serde_json::json!({
                "status": "Failure", "code": code, "message": "", "reason": "",
                "details": { "causes": [{ "reason": reason, "message": "", "field": "" }] },
            });
            kube::Error::Api(serde_json::from_value(status).unwrap())
        };
        for (code, reason, for_good) in [
            (403, "NamespaceTerminating", true),
            (403, "", false),
            (404, "", true),
            (422, "", true),
            (429, "", false),
            (500, "", false),
        ] {
            assert_eq!(
                is_refused_for_good(&refusal(code, reason)),
                for_good,
                "{code} {reason}"
            );
        }
    }
}
