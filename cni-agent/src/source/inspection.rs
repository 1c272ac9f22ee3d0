//! What is looked at again and again, because nobody tells when it changes.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::model::{Event, Source};

/// Looks at something `every` so often, and tells the log and the agent what is wrong with it whenever that is something
/// else; until nobody listens.
pub async fn inspect<F: Future<Output = Vec<String>>>(
    source: Source,
    every: Duration,
    events: mpsc::Sender<Event>,
    mut look: impl FnMut() -> F,
) {
    let mut told = Vec::new();
    loop {
        let problems = look().await;
        if problems != told {
            problems.iter().for_each(|problem| tracing::warn!("{problem}"));
            told.clone_from(&problems);
            if events.send(Event::Problems(source, problems)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = events.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn what_is_wrong_is_told_when_it_changes() {
        let (events, mut heard) = mpsc::channel(8);
        let mut found = [vec![], vec!["a"], vec!["a"], vec![]].into_iter();
        let look = move || {
            let problems = found.next().unwrap_or_default().into_iter();
            ready(problems.map(str::to_owned).collect())
        };
        let every = Duration::from_millis(1);
        let inspection = tokio::spawn(inspect(Source::Runtime, every, events, look));
        for problems in [vec!["a".to_owned()], vec![]] {
            match heard.recv().await {
                Some(Event::Problems(Source::Runtime, told)) => assert_eq!(told, problems),
                other => panic!("{other:?}"),
            }
        }
        drop(heard);
        inspection.await.unwrap();
    }
}
