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
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    fault,
    node_events::{CONTROLLER, EVENTS, news, note},
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
/// The API server forgets events after an hour, unless it is told otherwise (`--event-ttl`). While it knows one, to tell it
/// again changes nothing there; when it does not, nobody has to wait for long.
const RENEWAL: Duration = Duration::from_secs(15 * 60);

/// What was said of each Service last, and when.
type Told = BTreeMap<NamespacedName, (String, Instant)>;

/// Says what is wrong with Services, and says it again while it lasts, until nobody listens.
pub(super) async fn announce(office: Office, mut status: watch::Receiver<Arc<Status>>) {
    let desk = Arc::clone(&office.desk);
    let client = office.servers.client(move || desk.fine(EVENTS));
    let mut told = Told::new();
    loop {
        let Some(problem) = next(&status.borrow_and_update(), &mut told, Instant::now()) else {
            if !news(&mut status, renewal(&told)).await {
                return;
            }
            continue;
        };
        match tell(&client, &office.node, &problem).await {
            Ok(()) => _ = told.insert(problem.service, (problem.text, Instant::now())),
            // It would stand in the way of all others.
            Err(error) if is_refused_for_good(&error) => {
                tracing::debug!(service = %problem.service, %error, "no event can be made of this");
                told.insert(problem.service, (problem.text, Instant::now()));
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

/// The first that has not been told, or else that was told the longest ago and too long. What is over may be told again.
fn next(status: &Status, told: &mut Told, now: Instant) -> Option<ServiceProblem> {
    let troubled = status
        .services
        .as_ref()
        .map_or(&[][..], |services| &services.troubled);
    let still: BTreeSet<&NamespacedName> = troubled.iter().map(|problem| &problem.service).collect();
    told.retain(|name, _| still.contains(name));
    let last = |problem: &&ServiceProblem| {
        let (_, at) = told
            .get(&problem.service)
            .filter(|(text, _)| *text == problem.text)?;
        Some(*at)
    };
    let due = troubled
        .iter()
        .filter(|problem| last(problem).is_none_or(|at| at + RENEWAL <= now));
    due.min_by_key(last).cloned()
}

/// When the first of them is to be told again.
fn renewal(told: &Told) -> Option<Instant> {
    let told = told.values().map(|(_, at)| *at + RENEWAL);
    told.min()
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
        note: Some(note(problem.text.clone(), "millrace services")),
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
        let mut told = Told::new();
        let now = Instant::now();
        let (bad, worse) = (problem("a", "bad"), problem("a", "worse"));
        for (troubled, said) in [
            (vec![bad.clone()], Some(&bad)),
            (vec![bad.clone()], None),
            (vec![worse.clone()], Some(&worse)),
            (vec![], None),
            (vec![worse.clone()], Some(&worse)),
        ] {
            let next = next(&status(&troubled), &mut told, now);
            assert_eq!(next.as_ref(), said);
            told.extend(next.map(|problem| (problem.service, (problem.text, now))));
        }
        assert_eq!(next(&Status::default(), &mut told, now), None);
    }

    #[test]
    fn what_lasts_is_said_again_after_what_is_new() {
        let mut told = Told::new();
        let start = Instant::now();
        let later = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let (a, b, new) = (problem("a", "bad"), problem("b", "bad"), problem("c", "bad"));
        told.insert(a.service.clone(), (a.text.clone(), later(1)));
        told.insert(b.service.clone(), (b.text.clone(), start));
        let both = status(&[a.clone(), b.clone()]);
        assert_eq!(renewal(&told), Some(later(15)));
        assert_eq!(next(&both, &mut told, later(14)), None);
        assert_eq!(next(&both, &mut told, later(15)), Some(b.clone()));
        // Both are due: that which was told before the other.
        assert_eq!(next(&both, &mut told, later(20)), Some(b.clone()));
        let all = status(&[a.clone(), b.clone(), new.clone()]);
        assert_eq!(next(&all, &mut told, later(20)), Some(new));
        told.insert(b.service.clone(), (b.text, later(20)));
        assert_eq!(next(&both, &mut told, later(20)), Some(a));
        assert_eq!(renewal(&Told::new()), None);
    }

    #[test]
    fn what_an_event_has_no_room_for_is_shown_by_the_command_line() {
        let note = event("x", &problem("a", &"bad\n".repeat(500))).note.unwrap();
        assert!(note.ends_with("bad\n… more; see `millrace services`"), "{note}");
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
