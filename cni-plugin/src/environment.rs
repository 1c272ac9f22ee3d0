//! What the runtime says in `CNI_*` variables, checked.

mod arguments;

use crate::{Attachment, CniError, code};
use std::{ffi::OsString, path::PathBuf};

pub use arguments::Arguments;

/// One verb with the variables that it requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    Add { attachment: Attachment, netns: String },
    Check { attachment: Attachment, netns: String },
    Del { attachment: Attachment },
    Gc,
    Status,
    Version,
}

impl Verb {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Add { .. } => "ADD",
            Self::Check { .. } => "CHECK",
            Self::Del { .. } => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// The whole environment of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    pub verb: Verb,
    /// Where delegated plugins are looked for.
    pub path: Vec<PathBuf>,
    /// `CNI_ARGS` as it came: a DEL must not fail because it is malformed.
    pub args: String,
}

impl Environment {
    /// Reads the variables through `lookup`. All that is wrong is named in one error.
    pub fn read(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let mut variables = Variables {
            lookup,
            problems: Vec::new(),
        };
        let command = variables.required("CNI_COMMAND");
        let verb = match command.as_str() {
            "ADD" => Verb::Add {
                attachment: variables.attachment(),
                netns: variables.required("CNI_NETNS"),
            },
            "CHECK" => Verb::Check {
                attachment: variables.attachment(),
                netns: variables.required("CNI_NETNS"),
            },
            "DEL" => Verb::Del {
                attachment: variables.attachment(),
            },
            "GC" => {
                variables.required("CNI_PATH");
                Verb::Gc
            }
            "STATUS" => Verb::Status,
            "VERSION" => Verb::Version,
            unknown => {
                // An absent one has been noted already.
                if !unknown.is_empty() {
                    variables.problems.push(format!(
                        "CNI_COMMAND is \"{unknown}\"; it must be ADD, CHECK, DEL, GC, STATUS or VERSION"
                    ));
                }
                Verb::Version
            }
        };
        if verb == Verb::Version && variables.problems.is_empty() {
            return Ok(Self {
                verb,
                path: Vec::new(),
                args: String::new(),
            });
        }
        let args = variables.optional("CNI_ARGS");
        let path = (variables.lookup)("CNI_PATH").unwrap_or_default();
        let path = std::env::split_paths(&path)
            .filter(|folder| !folder.as_os_str().is_empty())
            .collect();
        match variables.problems.is_empty() {
            true => Ok(Self { verb, path, args }),
            false => Err(
                CniError::new(code::INVALID_ENVIRONMENT, "invalid environment variables")
                    .with_details(variables.problems.join("; ")),
            ),
        }
    }
}

struct Variables<F> {
    lookup: F,
    problems: Vec<String>,
}

impl<F: Fn(&str) -> Option<OsString>> Variables<F> {
    fn optional(&mut self, name: &str) -> String {
        match (self.lookup)(name).map(OsString::into_string) {
            None => String::new(),
            Some(Ok(value)) => value,
            Some(Err(_)) => {
                self.problems.push(format!("{name} is not valid UTF-8"));
                String::new()
            }
        }
    }

    fn required(&mut self, name: &str) -> String {
        let known = self.problems.len();
        let value = self.optional(name);
        if value.is_empty() && self.problems.len() == known {
            self.problems.push(format!("{name} is missing"));
        }
        value
    }

    fn attachment(&mut self) -> Attachment {
        let container_id = self.required("CNI_CONTAINERID");
        if !container_id.is_empty() && !is_identifier(&container_id) {
            self.problems.push(format!(
                "CNI_CONTAINERID \"{container_id}\" must begin with a letter or digit and go on with letters, \
                 digits, `_`, `.` or `-`"
            ));
        }
        let ifname = self.required("CNI_IFNAME");
        if let (false, Some(problem)) = (ifname.is_empty(), ifname_problem(&ifname)) {
            self.problems.push(format!("CNI_IFNAME \"{ifname}\" {problem}"));
        }
        Attachment::new(container_id, ifname)
    }
}

/// The syntax of network names and container ids.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.' | '-'))
}

/// The kernel's own rules for interface names.
fn ifname_problem(ifname: &str) -> Option<&'static str> {
    match ifname {
        name if name.len() > 15 => Some("is longer than 15 bytes"),
        "." | ".." => Some("is a folder's name"),
        name if name
            .contains(|letter: char| matches!(letter, '/' | ':' | '\0') || letter.is_whitespace()) =>
        {
            Some("contains `/`, `:` or white space")
        }
        // The kernel would put a number in its place.
        name if name.contains('%') => Some("contains `%`"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
