//! What a person sees.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// One exchange: how long it took, or why it failed.
pub(crate) type Cell = Result<Duration>;

const NAME: usize = 31;
const COLUMN: usize = 9;

pub(crate) struct Show {
    colours: bool,
    began: Instant,
    failures: Vec<String>,
}

impl Default for Show {
    fn default() -> Self {
        Self {
            colours: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            began: Instant::now(),
            failures: Vec::new(),
        }
    }
}

impl Show {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn good(&self, text: &str) -> String {
        self.paint("32", text)
    }

    fn bad(&self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(crate) fn step(&self, title: &str) {
        println!("\n{}", self.paint("1", &format!("==> {title}")));
        let _ = std::io::stdout().flush();
    }

    pub(crate) fn say(&self, text: &str) {
        println!("    {text}");
    }

    /// What another program printed.
    pub(crate) fn output(&self, bytes: &[u8]) {
        for line in String::from_utf8_lossy(bytes).lines() {
            println!("    {line}");
        }
    }

    pub(crate) fn check(&mut self, what: &str, holds: bool) {
        if holds {
            println!("    {} {what}", self.good("ok"));
        } else {
            println!("    {} {what}", self.bad("FAILED"));
            self.failures.push(what.to_owned());
        }
    }

    pub(crate) fn header(&self, columns: &[&str; 7]) {
        let [first, columns @ ..] = columns;
        let columns: String = columns
            .iter()
            .map(|column| format!("{column:>COLUMN$}"))
            .collect();
        println!("    {}", self.paint("2", &format!("{first:NAME$}{columns}")));
    }

    pub(crate) fn row(&mut self, name: &str, cells: Vec<Cell>) {
        let mut line = format!("    {name:NAME$}");
        for cell in cells {
            // Padded before it is painted: escape sequences have no width.
            line += &match cell {
                Ok(took) => self.good(&format!("{:>COLUMN$}", time(took))),
                Err(error) => {
                    self.failures.push(format!("{name}: {error:#}"));
                    self.bad(&format!("{:>COLUMN$}", "FAILED"))
                }
            };
        }
        println!("{line}");
        let _ = std::io::stdout().flush();
    }

    pub(crate) fn finish(self) -> Result<()> {
        let took = time(self.began.elapsed());
        if self.failures.is_empty() {
            println!(
                "\n{}",
                self.paint("1;32", &format!("Everything worked ({took})."))
            );
            return Ok(());
        }
        bail!(
            "{} things did not work:\n  {}",
            self.failures.len(),
            self.failures.join("\n  ")
        )
    }
}

pub(crate) fn time(took: Duration) -> String {
    match took.as_micros() {
        micros @ ..1000 => format!("{micros} us"),
        micros @ ..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        micros => format!("{:.1} s", micros as f64 / 1e6),
    }
}
