//! `millrace status`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write},
    process::ExitCode,
};

use serde::Serialize;

use super::{Context, Outcome, ask, print_json};
use crate::{
    kernel::{
        host::{self, Check, State},
        links,
        maps::capacity_remedy,
    },
    observe::tables::{self, Fill},
    status::Status,
};

/// Everything that is known about this node.
#[derive(Serialize)]
struct Report {
    state: State,
    /// What the agent says; absent if none runs.
    agent: Option<Status>,
    checks: Vec<Check>,
    maps: BTreeMap<String, Fill>,
}

/// A map that is fuller than this is worth a word.
const NEARLY_FULL: f64 = 0.9;

pub(crate) fn run(context: &Context) -> Outcome {
    let report = report(context);
    if context.json {
        print_json(&report)?;
    } else {
        io::stdout().write_all(text(&report).as_bytes())?;
    }
    Ok(ExitCode::from(match report.state {
        State::Ok => 0,
        State::Warning => 1,
        State::Failed => 2,
    }))
}

fn check(name: &str, state: State, detail: String, remedy: &str) -> Check {
    Check {
        name: name.to_owned(),
        state,
        detail,
        remedy: remedy.to_owned(),
    }
}

fn report(context: &Context) -> Report {
    let mut checks = Vec::new();
    let agent = match ask::status(&context.config.paths.admin_socket) {
        Ok(status) => {
            checks.extend(agent_checks(&status));
            Some(status)
        }
        Err(error) => {
            let detail = format!("{error} (pods that have a network keep it; new ones do not start)");
            checks.push(check(
                "agent",
                State::Failed,
                detail,
                "start it, and see its log if it ends",
            ));
            None
        }
    };
    let of_host = host::checks(&context.config);
    // What the agent has seen too is said once.
    checks.retain(|check| {
        let said = |other: &Check| check.detail == format!("{}: {}", other.name, other.detail);
        !of_host.iter().any(said)
    });
    checks.extend(of_host);
    let maps = match tables::read(&context.pins()) {
        Ok(maps) => maps,
        Err(error) => {
            checks.push(check("maps", State::Failed, error.to_string(), &error.remedy));
            BTreeMap::new()
        }
    };
    checks.extend(map_checks(&maps));
    match links::overtaken(&context.pins()) {
        Ok(overtaken) => checks.extend(overtaken.iter().map(|link| {
            let detail = format!("another program runs before {link}");
            check(
                "attachment",
                State::Warning,
                detail,
                "see `bpftool net` for whose it is, and have it attach later",
            )
        })),
        Err(error) => checks.push(check(
            "attachment",
            State::Warning,
            error.to_string(),
            &error.remedy,
        )),
    }
    let state = checks.iter().map(|check| check.state).max().unwrap_or(State::Ok);
    Report {
        state,
        agent,
        checks,
        maps,
    }
}

fn agent_checks(status: &Status) -> Vec<Check> {
    let mut checks = Vec::new();
    let ready = if status.ready { State::Ok } else { State::Failed };
    let detail = format!(
        "{} ({}), {} endpoints, devices {}",
        if status.ready {
            "serves pods"
        } else {
            "does not serve pods yet"
        },
        status.version,
        status.endpoints.len(),
        if status.devices.is_empty() {
            "none".to_owned()
        } else {
            status.devices.join(", ")
        },
    );
    checks.push(check(
        "agent",
        ready,
        detail,
        if status.ready { "" } else { "see what follows" },
    ));
    for (source, state) in &status.sources {
        if !state.synced {
            checks.push(check(
                &source.to_string(),
                // It may go on with what an earlier agent knew.
                if status.ready {
                    State::Warning
                } else {
                    State::Failed
                },
                "not read yet".to_owned(),
                "see the agent's log",
            ));
        }
    }
    for problem in &status.problems {
        // The agent's problems name their remedy behind a semicolon.
        let (detail, remedy) = problem.rsplit_once("; ").unwrap_or((problem, ""));
        checks.push(check("problem", State::Warning, detail.to_owned(), remedy));
    }
    checks
}

fn map_checks(maps: &BTreeMap<String, Fill>) -> Vec<Check> {
    // A table that gives up its oldest entries is full sooner or later: what is over in it says nothing.
    let nearly_full = |fill: &Fill| {
        fill.live
            .filter(|live| *live as f64 >= NEARLY_FULL * f64::from(fill.capacity))
    };
    let full = maps
        .iter()
        .filter_map(|(map, fill)| Some((map, fill, nearly_full(fill)?)));
    full.map(|(map, fill, live)| {
        let detail = format!("{live} of {} entries", fill.capacity);
        check(
            &format!("map {map}"),
            State::Warning,
            detail,
            &capacity_remedy(map),
        )
    })
    .collect()
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for check in &report.checks {
        let mark = match check.state {
            State::Ok => "ok    ",
            State::Warning => "warn  ",
            State::Failed => "FAILED",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{mark}  {}: {}", check.name, check.detail);
        if !check.remedy.is_empty() {
            let _ = writeln!(text, "        do: {}", check.remedy);
        }
    }
    if let Some(Fill {
        live: Some(live),
        capacity,
        ..
    }) = report.maps.get("conntrack")
    {
        let _ = writeln!(text, "        {live} connections, room for {capacity}");
    }
    let _ = match report.state {
        State::Ok => writeln!(text, "everything works"),
        State::Warning => writeln!(text, "works, with warnings"),
        State::Failed => writeln!(text, "does not work"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nearly_full_map_is_named_with_its_setting() {
        let fill = |live| Fill {
            entries: 100,
            live,
            capacity: 100,
        };
        let maps = [
            ("conntrack", Some(95)),
            ("conntrack_new", Some(5)),
            ("nat", None),
            ("peers", Some(50)),
        ];
        let checks = map_checks(&maps.map(|(name, live)| (name.to_owned(), fill(live))).into());
        assert_eq!(checks.len(), 1);
        assert!(checks[0].remedy.contains("maps.conntrack"));
    }

    #[test]
    fn the_text_says_what_to_do() {
        let checks = vec![check("agent", State::Failed, "gone".to_owned(), "start it")];
        let report = Report {
            state: State::Failed,
            agent: None,
            checks,
            maps: BTreeMap::new(),
        };
        let text = text(&report);
        assert!(
            text.contains("FAILED  agent: gone") && text.contains("do: start it"),
            "{text}"
        );
    }
}
