//! `cargo xtask demo --keep`: what it prints can be typed, and what it leaves can be removed.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
    thread,
};

use cni_tests::lab::{bring_down, leftovers};

use crate::{eventually, needs_root};

/// Ends the lab and the process that was started in it, also by a panic.
struct Kept(String, Option<Child>);

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(child) = &mut self.1 {
            let _ = child.kill();
            let _ = child.wait();
        }
        bring_down(&self.0);
    }
}

fn demo(lab: &str, argument: &str) -> Output {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"));
    demo.arg(argument).env("MILLRACE_DEMO_LAB", lab);
    demo.output().unwrap()
}

/// A printed line as a command.
fn typed(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

#[test]
fn what_a_kept_demo_says_can_be_typed_and_all_of_it_goes_again() {
    needs_root!();
    let name = format!("mrlab-kept-{}", std::process::id());
    let mut kept = Kept(name.clone(), None);
    let output = demo(&name, "--keep");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}\n{:?}", output.stderr);
    let find = |label: &str| {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(label));
        line.unwrap_or_else(|| panic!("no `{label}` in\n{said}")).trim()
    };
    for (label, words) in [
        ("pod a to pod c", "-c 1"),
        ("what works", ""),
        ("connections", ""),
    ] {
        let output = typed(&format!("{} {words}", find(label))).output().unwrap();
        assert!(output.status.success(), "{label}: {output:?}");
        assert!(!output.stdout.is_empty(), "{label}: {output:?}");
    }
    let mut monitor = typed(find("events as they happen"));
    kept.1 = Some(monitor.stdout(Stdio::piped()).spawn().unwrap());
    let events = kept.1.as_mut().unwrap().stdout.take().unwrap();
    let first = thread::spawn(move || BufReader::new(events).lines().next());
    eventually(|| {
        let ping = format!("{} -c 1", find("pod a to pod c"));
        assert!(typed(&ping).output().unwrap().status.success());
        (!first.is_finished()).then(|| "no event".to_owned())
    });
    assert!(
        first
            .join()
            .unwrap()
            .is_some_and(|line| !line.unwrap().is_empty())
    );
    let log = std::fs::read_to_string(find("the agent's log")).unwrap();
    assert!(log.contains("the agent begins"));
    // A second one does not take the first one's place, nor its name.
    let again = demo(&name, "--keep");
    let complaint = String::from_utf8(again.stderr).unwrap();
    assert!(
        !again.status.success() && complaint.contains("demo --down"),
        "{complaint}"
    );
    assert_eq!(find("remove it"), "cargo xtask demo --down");
    for expected in ["The lab is gone.", "There is no lab"] {
        let output = demo(&name, "--down");
        assert!(output.status.success());
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(expected), "{said}");
        assert_eq!(leftovers(&name), Vec::<String>::new());
    }
}
