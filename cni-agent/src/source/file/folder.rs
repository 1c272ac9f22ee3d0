//! What the folder holds, and what that means as a whole.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::manifest::{self, Document};
use crate::model::{Event, NamespacedName, Object, ObjectKey, ServiceProblem, Source};

/// Bigger ones are not manifests.
const LARGEST: u64 = 16 << 20;

/// The folder as it was read last.
#[derive(Debug, Default)]
pub struct Folder {
    path: PathBuf,
    files: BTreeMap<PathBuf, ManifestFile>,
    /// What has been told, as it is in force.
    told: BTreeMap<ObjectKey, Object>,
    problems: Vec<String>,
    unread: Vec<ServiceProblem>,
    missing: bool,
}

#[derive(Debug, Default)]
struct ManifestFile {
    /// What was read last, good or bad: the same text is not parsed again.
    text: String,
    /// Of the last good version.
    documents: Vec<Document>,
    problem: Option<String>,
    /// The Service that the problem is about.
    unread: Option<NamespacedName>,
}

impl Folder {
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            ..Self::default()
        }
    }

    /// There was no folder when it was looked for last.
    pub fn is_missing(&self) -> bool {
        self.missing
    }

    /// Reads what changed, and gives what is different as a whole.
    pub fn scan(&mut self) -> Vec<Event> {
        let mut problems = Vec::new();
        match self.names() {
            Ok(names) => self.read(names),
            // Unreadable is not empty: what was known stays in force.
            Err(error) => problems.push(format!(
                "the manifests folder {} cannot be read: {error}; the last known manifests stay in force",
                self.path.display()
            )),
        }
        let objects = self.merge(&mut problems);
        let mut events = Vec::new();
        for (key, object) in &objects {
            if self.told.get(key) != Some(object) {
                events.push(Event::Set(object.clone()));
            }
        }
        for key in self.told.keys().filter(|key| !objects.contains_key(key)) {
            events.push(Event::Gone(key.clone()));
        }
        self.told = objects;
        if problems != self.problems {
            for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
                tracing::warn!("{problem}");
            }
            events.push(Event::Problems(Source::Files, problems.clone()));
            self.problems = problems;
        }
        let unread = self.files.values().filter_map(ManifestFile::unread).collect();
        if unread != self.unread {
            events.push(Event::Unread(Vec::clone(&unread)));
            self.unread = unread;
        }
        events
    }

    /// The manifests by their names, hidden files left out: editors and ConfigMap mounts keep theirs there.
    fn names(&mut self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.missing = true;
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        self.missing = false;
        let mut names = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let hidden = path
                .file_name()
                .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
            let manifest = path
                .extension()
                .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known));
            if manifest && !hidden {
                names.push(path);
            }
        }
        Ok(names)
    }

    fn read(&mut self, names: Vec<PathBuf>) {
        let mut files = BTreeMap::new();
        for path in names {
            let mut file = self.files.remove(&path).unwrap_or_default();
            match text_of(&path) {
                Ok(None) => continue,
                Ok(Some(text)) if file.text == text && file.problem.is_none() => {}
                Ok(Some(text)) => file.take(&path, text),
                Err(error) => file.complain(&path, &error.to_string()),
            }
            files.insert(path, file);
        }
        self.files = files;
    }

    /// The first file, in the order of their names, decides about an object.
    fn merge(&self, problems: &mut Vec<String>) -> BTreeMap<ObjectKey, Object> {
        let mut objects: BTreeMap<ObjectKey, (&Path, &Object)> = BTreeMap::new();
        for (path, file) in &self.files {
            problems.extend(file.problem.iter().cloned());
            for document in &file.documents {
                let object = match document {
                    Document::Object(object) => object,
                    Document::Foreign { document, kind } => {
                        problems.push(format!(
                            "{}, document {document}: {kind} is not understood yet and has no effect",
                            path.display()
                        ));
                        continue;
                    }
                };
                let key = object.key();
                if let Some((first, _)) = objects.get(&key) {
                    problems.push(format!(
                        "{key} is in {} and again in {}; the first one counts, take the other one out",
                        first.display(),
                        path.display()
                    ));
                } else {
                    objects.insert(key, (path, object));
                }
            }
        }
        objects
            .into_iter()
            .map(|(key, (_, object))| (key, object.clone()))
            .collect()
    }
}

impl ManifestFile {
    fn take(&mut self, path: &Path, text: String) {
        match manifest::parse(&text) {
            Ok(documents) => {
                self.documents = documents;
                self.problem = None;
                self.unread = None;
            }
            Err(error) => {
                self.complain(path, &error.to_string());
                self.unread = error.service();
            }
        }
        self.text = text;
    }

    fn unread(&self) -> Option<ServiceProblem> {
        Some(ServiceProblem {
            service: self.unread.clone()?,
            uid: String::new(),
            text: self.problem.clone()?,
        })
    }

    fn complain(&mut self, path: &Path, reason: &str) {
        let rest = if self.documents.is_empty() {
            ""
        } else {
            "; its last good version stays in force"
        };
        self.problem = Some(format!("{}: {reason}{rest}", path.display()));
        self.unread = None;
    }
}

/// `None`: it is gone, or it is no file.
fn text_of(path: &Path) -> io::Result<Option<String>> {
    let known = |result: io::Result<_>| match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    // Follows links: a mounted ConfigMap consists of them.
    let Some(metadata) = known(fs::metadata(path).map(|metadata| (metadata.is_file(), metadata.len())))?
    else {
        return Ok(None);
    };
    match metadata {
        (false, _) => Ok(None),
        (true, size) if size > LARGEST => Err(io::Error::other(format!(
            "{size} bytes are too many; split the file"
        ))),
        _ => match fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        },
    }
}
