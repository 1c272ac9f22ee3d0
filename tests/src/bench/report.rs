//! What a bench says: a table for people, one JSON object for the record.

use std::fmt;

use serde::Serialize;

use super::series::{Samples, median};

#[derive(Debug, Serialize)]
pub struct Report {
    pub bench: &'static str,
    pub machine: Machine,
    pub rounds: usize,
    pub results: Vec<Row>,
    pub ratios: Vec<Ratio>,
    pub limits: Vec<Limit>,
    /// What a reader must know to judge the figures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Machine {
    pub kernel: String,
    pub cores: usize,
    /// What makes this machine's figures unlike another's.
    pub flags: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub contender: String,
    pub metric: String,
    pub unit: &'static str,
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

/// How many times better `of` is than `to`.
#[derive(Debug, Serialize)]
pub struct Ratio {
    pub metric: String,
    pub of: String,
    pub to: String,
    pub value: f64,
    /// The least that is good enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct Limit {
    pub metric: String,
    pub value: f64,
    pub unit: &'static str,
    pub most: f64,
}

/// Medians of fewer rounds say little.
pub const ROUNDS: usize = 7;

impl Report {
    pub fn new(bench: &'static str, rounds: usize, samples: &Samples) -> Self {
        let rows = samples.all().iter().filter_map(|series| {
            Some(Row {
                contender: series.contender.clone(),
                metric: series.metric.clone(),
                unit: series.unit,
                min: series.values.iter().copied().min_by(f64::total_cmp)?,
                median: median(&series.values)?,
                max: series.values.iter().copied().max_by(f64::total_cmp)?,
            })
        });
        let trial = format!("{rounds} rounds: fewer than {ROUNDS} are a trial, not a result");
        Self {
            bench,
            machine: Machine::this(),
            rounds,
            results: rows.collect(),
            ratios: Vec::new(),
            limits: Vec::new(),
            notes: Vec::from_iter((rounds < ROUNDS).then_some(trial)),
        }
    }

    /// Enters a ratio; what was not measured has none.
    pub fn ratio(&mut self, metric: &str, of: &str, to: &str, value: Option<f64>, goal: Option<f64>) {
        self.ratios.extend(value.map(|value| Ratio {
            metric: metric.to_owned(),
            of: of.to_owned(),
            to: to.to_owned(),
            value,
            goal,
        }));
    }
}

impl Machine {
    fn this() -> Self {
        let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let mut flags = Vec::new();
        if read("/proc/cpuinfo")
            .split_whitespace()
            .any(|flag| flag == "hypervisor")
        {
            flags.push("virtual machine".to_owned());
        }
        let jit = read("/proc/sys/net/core/bpf_jit_enable");
        flags.push(format!("bpf_jit_enable={}", jit.trim()));
        let hardened = read("/proc/sys/net/core/bpf_jit_harden");
        flags.push(format!("bpf_jit_harden={}", hardened.trim()));
        let clock = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
        flags.push(format!("clocksource={}", clock.trim()));
        let load = read("/proc/loadavg");
        let load = load.split(' ').next().unwrap_or_default();
        flags.push(format!("load average at the end {load}"));
        Self {
            kernel: release.unwrap_or_default(),
            cores: super::load::allowed().map_or(0, |all| all.len()),
            flags,
        }
    }
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

type Line = Vec<String>;

/// Columns as wide as their widest; the first is text, the others are numbers up to `numbers`.
fn table(f: &mut fmt::Formatter<'_>, lines: &[Line], text: usize) -> fmt::Result {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let wide = |column| {
        let cells = lines.iter().filter_map(|line: &Line| line.get(column));
        cells.map(|cell: &String| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(wide).collect();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| {
            if column < text {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            }
        });
        writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { kernel, cores, flags } = &self.machine;
        writeln!(
            f,
            "\n{}: {} rounds, Linux {kernel}, {cores} cores, {}\n",
            self.bench,
            self.rounds,
            flags.join(", ")
        )?;
        let head = ["metric", "contender", "unit", "median", "min", "max"].map(str::to_owned);
        let rows = self.results.iter().map(|row| {
            let Row { min, median, max, .. } = row;
            let unit = row.unit.to_owned();
            vec![
                row.metric.clone(),
                row.contender.clone(),
                unit,
                number(*median),
                number(*min),
                number(*max),
            ]
        });
        table(
            f,
            &std::iter::once(head.to_vec()).chain(rows).collect::<Vec<_>>(),
            3,
        )?;
        if !self.ratios.is_empty() {
            writeln!(f)?;
            let head = ["ratio of", "", "to", "value", "goal", ""].map(str::to_owned);
            let rows = self.ratios.iter().map(Ratio::line);
            table(
                f,
                &std::iter::once(head.to_vec()).chain(rows).collect::<Vec<_>>(),
                3,
            )?;
        }
        if !self.limits.is_empty() {
            writeln!(f)?;
            let head = ["limit", "unit", "value", "most", ""].map(str::to_owned);
            let rows = self.limits.iter().map(Limit::line);
            table(
                f,
                &std::iter::once(head.to_vec()).chain(rows).collect::<Vec<_>>(),
                2,
            )?;
        }
        self.notes
            .iter()
            .try_for_each(|note| writeln!(f, "\nnote: {note}"))
    }
}

impl Ratio {
    fn line(&self) -> Line {
        let verdict = self.goal.map(|goal| judged(self.value >= goal));
        vec![
            self.metric.clone(),
            self.of.clone(),
            self.to.clone(),
            format!("{:.3}", self.value),
            self.goal.map(|goal| format!("{goal:.2}")).unwrap_or_default(),
            verdict.unwrap_or_default().to_owned(),
        ]
    }
}

impl Limit {
    fn line(&self) -> Line {
        let verdict = judged(self.value <= self.most).to_owned();
        vec![
            self.metric.clone(),
            self.unit.to_owned(),
            number(self.value),
            number(self.most),
            verdict,
        ]
    }
}

fn judged(good: bool) -> &'static str {
    if good { "met" } else { "MISSED" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report() -> Report {
        let mut samples = Samples::default();
        for value in [3.0, 1.0, 2.0] {
            samples.add("millrace", "tcp", "1/s", value * 10.0);
            samples.add("veth", "tcp", "1/s", value * 20.0);
        }
        let mut report = Report::new("pod-path", 3, &samples);
        let value = samples.ratio("millrace", "veth", "tcp");
        report.ratio("tcp", "millrace", "veth", value, Some(0.97));
        report.ratio("nothing", "millrace", "veth", None, Some(1.0));
        report.limits.push(Limit {
            metric: "hot".into(),
            value: 50.0,
            unit: "ns",
            most: 60.0,
        });
        report
    }

    #[test]
    fn the_object_has_the_agreed_shape() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(json["bench"], "pod-path");
        assert_eq!(json["rounds"], 3);
        assert!(json["machine"]["kernel"].is_string() && json["machine"]["flags"].is_array());
        assert_eq!(
            json["results"][0],
            json!({ "contender": "millrace", "metric": "tcp", "unit": "1/s", "min": 10.0, "median": 20.0, "max": 30.0 })
        );
        assert_eq!(
            json["ratios"],
            json!([{ "metric": "tcp", "of": "millrace", "to": "veth", "value": 0.5, "goal": 0.97 }])
        );
        assert_eq!(
            json["limits"],
            json!([{ "metric": "hot", "value": 50.0, "unit": "ns", "most": 60.0 }])
        );
    }

    #[test]
    fn a_missed_goal_is_a_row_that_says_so() {
        let text = report().to_string();
        let line = |word: &str| {
            text.lines()
                .find(|line| line.contains(word))
                .unwrap_or_default()
                .to_owned()
        };
        assert!(line("0.500").ends_with("0.97  MISSED"), "{text}");
        assert!(line("fewer than 7").contains("3 rounds"), "{text}");
        assert!(line("hot").ends_with("met"), "{text}");
    }
}
