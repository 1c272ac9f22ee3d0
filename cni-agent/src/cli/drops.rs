//! `millrace drops`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;

use super::{Context, Outcome, print_json, table};
use crate::observe::counters::{self, Count};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Also reasons for which nothing was dropped
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(context: &Context, options: &Options) -> Outcome {
    let mut counters = counters::read(&context.pins())?;
    if !options.all {
        counters.dropped.retain(|count| count.packets != 0);
    }
    counters
        .dropped
        .sort_by_key(|count| std::cmp::Reverse(count.packets));
    if context.json {
        print_json(&counters)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut out = io::stdout().lock();
    if counters.dropped.is_empty() {
        writeln!(out, "nothing was dropped")?;
    } else {
        let rows: Vec<Vec<String>> = counters.dropped.iter().map(row).collect();
        out.write_all(table::text(&["REASON", "DIRECTION", "PACKETS", "BYTES", "MEANS"], &rows).as_bytes())?;
    }
    if counters.events_lost != 0 {
        writeln!(
            out,
            "{} events were lost: nobody read them fast enough (`maps.events`)",
            counters.events_lost
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(count: &Count) -> Vec<String> {
    vec![
        count.reason.clone(),
        count.direction.clone(),
        count.packets.to_string(),
        count.bytes.to_string(),
        count.text.clone(),
    ]
}
