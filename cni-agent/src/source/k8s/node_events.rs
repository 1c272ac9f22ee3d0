//! Events on this node's object, where `kubectl describe node` shows them.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::{sync::watch, time::sleep};

use super::{desk::Resource, fault, pace, watch::Office};
use crate::status::Status;

/// What does not last is not worth an event.
const LASTS: Duration = Duration::from_secs(5);
/// Between events: a fault that comes and goes must not fill the store.
const PAUSE: Duration = Duration::from_secs(30);
/// A note must be shorter than 1024 bytes.
const LONGEST: usize = 1000;
pub(super) const EVENTS: Resource = "events";

/// Who says it.
pub(super) const CONTROLLER: &str = "millrace.dev/agent";

/// What an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Ready,
    /// Works, but.
    Degraded(String),
    /// No pod can start.
    NotReady(String),
}

impl Condition {
    fn of(status: &Status) -> Self {
        let note = note(status.problems.join("\n"));
        match (status.ready, note.is_empty()) {
            (true, true) => Self::Ready,
            (true, false) => Self::Degraded(note),
            (false, _) => Self::NotReady(note),
        }
    }

    fn event(&self) -> Event {
        let (type_, reason, note) = match self {
            Self::Ready => (EventType::Normal, "MillraceReady", "pods can start on this node"),
            Self::Degraded(note) => (EventType::Warning, "MillraceDegraded", note.as_str()),
            Self::NotReady(note) => (EventType::Warning, "MillraceNotReady", note.as_str()),
        };
        Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.to_owned()),
            action: "Reconcile".to_owned(),
            secondary: None,
        }
    }
}

/// As much of the text as an event takes.
pub(super) fn note(mut text: String) -> String {
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default());
    }
    text
}

/// Says what became of the agent, until nobody listens.
pub(super) async fn announce(office: Office, mut status: watch::Receiver<Arc<Status>>) {
    let desk = Arc::clone(&office.desk);
    let reporter = Reporter {
        controller: CONTROLLER.to_owned(),
        instance: Some(office.node.to_string()),
    };
    let client = office.servers.client(move || desk.fine(EVENTS));
    let mut told = None;
    loop {
        let condition = Condition::of(&status.borrow_and_update());
        if told.as_ref() != Some(&condition) && lasts(&mut status, &condition).await {
            // A fresh one each time: it would count events of a kind in a series, and need the right to patch them.
            let recorder = Recorder::new(client.clone(), reporter.clone());
            match recorder.publish(&condition.event(), &node(&office.node)).await {
                Ok(()) => told = Some(condition),
                Err(error) => {
                    if let Some(text) = fault::of_request("create", EVENTS, &error) {
                        office.desk.fault(EVENTS, text);
                    }
                }
            }
            sleep(pace::around(PAUSE)).await;
        } else if status.changed().await.is_err() {
            return;
        }
    }
}

/// Whether it is still the same after a while.
async fn lasts(status: &mut watch::Receiver<Arc<Status>>, condition: &Condition) -> bool {
    sleep(LASTS).await;
    Condition::of(&status.borrow_and_update()) == *condition
}

/// The kubelet names its node so too, by the name where a uid is expected, and `kubectl describe` looks for that.
fn node(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(name.to_owned()),
        uid: Some(name.to_owned()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_fits_and_ends_between_characters() {
        let status = Status {
            problems: vec!["ä".repeat(900)],
            ready: true,
            ..Status::default()
        };
        let Condition::Degraded(note) = Condition::of(&status) else {
            panic!("not degraded")
        };
        assert!(note.len() <= LONGEST && note.len() > LONGEST - 2);
        assert_eq!(
            Condition::of(&Status {
                ready: true,
                ..Status::default()
            }),
            Condition::Ready
        );
        assert_eq!(
            Condition::of(&Status::default()),
            Condition::NotReady(String::new())
        );
    }
}
