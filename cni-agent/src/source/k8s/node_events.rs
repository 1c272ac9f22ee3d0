//! Events on this node's object, where `kubectl describe node` shows them.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

use super::{desk::Resource, fault, pace, watch::Office};
use crate::status::Status;

/// What does not last is not worth an event.
const LASTS: Duration = Duration::from_secs(5);
/// Between events: a fault that comes and goes must not fill the store.
const PAUSE: Duration = Duration::from_secs(30);
/// What lasts is said again before the API server has forgotten it: it keeps events for an hour unless it is told otherwise
/// (`--event-ttl`).
const RENEWAL: Duration = Duration::from_secs(50 * 60);
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
        let note = note(status.problems.join("\n"), "millrace status");
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

/// What was said last, and when.
struct Told {
    condition: Condition,
    at: Instant,
}

impl Told {
    /// When it is to be said again. That all is well is news only once.
    fn renewal(&self) -> Option<Instant> {
        (self.condition != Condition::Ready).then(|| self.at + RENEWAL)
    }

    fn is_enough(&self, condition: &Condition, now: Instant) -> bool {
        self.condition == *condition && self.renewal().is_none_or(|at| now < at)
    }
}

/// As much of the text as an event takes, if possible up to the end of a line; what shows all of it stands last.
pub(super) fn note(mut text: String, command: &str) -> String {
    if text.len() > LONGEST {
        let more = format!("\n… more; see `{command}`");
        let end = text.floor_char_boundary(LONGEST - more.len());
        let lines = text.as_bytes()[..=end].iter().rposition(|byte| *byte == b'\n');
        // Of a long line a part says more than the short one before it.
        text.truncate(lines.filter(|lines| *lines >= end / 2).unwrap_or(end));
        text.push_str(&more);
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
    let mut told: Option<Told> = None;
    loop {
        let condition = Condition::of(&status.borrow_and_update());
        if let Some(told) = told
            .as_ref()
            .filter(|told| told.is_enough(&condition, Instant::now()))
        {
            if !news(&mut status, told.renewal()).await {
                return;
            }
            continue;
        }
        if !lasts(&mut status, &condition).await {
            continue;
        }
        // A fresh one each time: it would count events of a kind in a series, and need the right to patch them.
        let recorder = Recorder::new(client.clone(), reporter.clone());
        match recorder.publish(&condition.event(), &node(&office.node)).await {
            Ok(()) => {
                let at = Instant::now();
                told = Some(Told { condition, at });
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

/// Waits for another status, or until then; false if there will be none.
pub(super) async fn news(status: &mut watch::Receiver<Arc<Status>>, until: Option<Instant>) -> bool {
    let changed = status.changed();
    match until {
        Some(until) => timeout_at(until, changed).await.unwrap_or(Ok(())),
        None => changed.await,
    }
    .is_ok()
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
    fn what_is_the_matter_follows_from_the_status() {
        let fine = Status {
            ready: true,
            ..Status::default()
        };
        assert_eq!(Condition::of(&fine), Condition::Ready);
        let but = Status {
            problems: vec!["a".into(), "b".into()],
            ..fine
        };
        assert_eq!(Condition::of(&but), Condition::Degraded("a\nb".into()));
        assert_eq!(
            Condition::of(&Status::default()),
            Condition::NotReady(String::new())
        );
    }

    #[test]
    fn a_note_that_is_cut_says_so_and_fits_and_ends_between_characters() {
        let whole = "ä".repeat(LONGEST / 2);
        assert_eq!(note(whole.clone(), "millrace status"), whole);
        let end = "\n… more; see `millrace status`";
        for ahead in ["", "a"] {
            let text = note(format!("{ahead}{}", "ä".repeat(900)), "millrace status");
            assert!(text.len() <= LONGEST && text.len() > LONGEST - 2, "{text}");
            assert!(text.ends_with(&format!("ä{end}")), "{text}");
        }
    }

    #[test]
    fn a_note_is_cut_at_the_end_of_a_line_if_that_leaves_enough() {
        let note = |text: &str| note(text.to_owned(), "c");
        let end = "\n… more; see `c`";
        let line = "x".repeat(99);
        let lines = [line.as_str(); 20].join("\n");
        assert_eq!(note(&lines), format!("{}{end}", [line.as_str(); 9].join("\n")));
        // It ends where the room does.
        let room = "x".repeat(LONGEST - end.len());
        assert_eq!(note(&format!("{room}\n{lines}")), format!("{room}{end}"));
        let short = note(&format!("short\n{}", "x".repeat(2000)));
        assert!(
            short.len() == LONGEST && short.starts_with("short\nxxx"),
            "{short}"
        );
    }

    #[test]
    fn what_lasts_is_said_again_before_it_is_forgotten() {
        let start = Instant::now();
        let bad = Condition::Degraded("bad".into());
        let told = |condition: &Condition| Told {
            condition: condition.clone(),
            at: start,
        };
        let later = |minutes: u64| start + Duration::from_secs(60 * minutes);
        for (last, now, minutes, enough) in [
            (&bad, &bad, 0, true),
            (&bad, &bad, 49, true),
            (&bad, &bad, 50, false),
            (&bad, &Condition::Ready, 0, false),
            (&Condition::Ready, &bad, 0, false),
            (&Condition::Ready, &Condition::Ready, 1000, true),
        ] {
            assert_eq!(
                told(last).is_enough(now, later(minutes)),
                enough,
                "{last:?} {now:?} {minutes}"
            );
        }
        assert_eq!(told(&bad).renewal(), Some(later(50)));
        assert_eq!(told(&Condition::Ready).renewal(), None);
    }

    #[tokio::test]
    async fn news_are_waited_for_until_something_is_due() {
        let (sender, mut status) = watch::channel(Arc::default());
        let due = Instant::now() + Duration::from_millis(20);
        assert!(news(&mut status, Some(due)).await && Instant::now() >= due);
        sender.send_replace(Arc::default());
        assert!(news(&mut status, None).await);
        drop(sender);
        assert!(!news(&mut status, Some(Instant::now() + RENEWAL)).await);
    }
}
