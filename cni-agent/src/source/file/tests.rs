use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use proptest::prelude::*;

use super::*;
use crate::model::{Object, ObjectKey, PodName};

fn namespace(name: &str, label: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{v: '{label}'}}}}\n")
}

/// What a listener makes of events.
#[derive(Debug, Default)]
struct Heard {
    objects: BTreeMap<ObjectKey, Object>,
    problems: Vec<String>,
    unread: Vec<String>,
}

impl Heard {
    fn hear(&mut self, events: Vec<Event>) -> usize {
        let count = events.len();
        for event in events {
            match event {
                Event::Set(object) => {
                    self.objects.insert(object.key(), object);
                }
                Event::Gone(key) => assert!(self.objects.remove(&key).is_some(), "{key} was never there"),
                Event::Problems(Source::Files, problems) => self.problems = problems,
                Event::Unread(services) => {
                    self.unread = services.iter().map(|one| one.service.to_string()).collect();
                }
                other => panic!("{other:?}"),
            }
        }
        count
    }

    /// The label of a namespace.
    fn label(&self, name: &str) -> Option<&str> {
        match self.objects.get(&ObjectKey::Namespace(name.into()))? {
            Object::Namespace(namespace) => namespace.labels.get("v"),
            _ => None,
        }
    }
}

struct Desk {
    _root: tempfile::TempDir,
    path: PathBuf,
    folder: Folder,
    heard: Heard,
}

impl Desk {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("manifests");
        fs::create_dir(&path).unwrap();
        Self {
            folder: Folder::new(path.clone()),
            path,
            _root: root,
            heard: Heard::default(),
        }
    }

    fn write(&mut self, name: &str, text: &str) -> usize {
        fs::write(self.path.join(name), text).unwrap();
        self.scan()
    }

    fn scan(&mut self) -> usize {
        let events = self.folder.scan();
        self.heard.hear(events)
    }
}

fn only(documents: &[Document]) -> &Object {
    match documents {
        [Document::Object(object)] => object,
        other => panic!("{other:?}"),
    }
}

#[test]
fn kubernetes_objects_in_yaml_json_and_lists() {
    let yaml = "
apiVersion: v1
kind: Node
metadata: {name: a, labels: {topology.kubernetes.io/zone: z1}}
spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, 'fd00:1::/64']}
status:
  addresses:
  - {type: Hostname, address: a}
  - {type: ExternalIP, address: 203.0.113.9}
  - {type: InternalIP, address: 192.0.2.1}
";
    let Object::Node(node) = only(&manifest::parse(yaml).unwrap()).clone() else {
        panic!()
    };
    assert_eq!(node.zone.as_deref(), Some("z1"));
    assert_eq!(node.pod_cidrs.len(), 2);
    assert_eq!(node.addresses[0].to_string(), "192.0.2.1");
    assert_eq!(node.addresses.len(), 2);

    let json = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": null},
         "spec": {"nodeName": "n", "hostNetwork": true},
         "status": {"phase": "Succeeded", "podIP": "10.1.0.5", "podIPs": [{"ip": "10.1.0.5"}, {"ip": "fd00::5"}]}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "on"}}
    ]}"#;
    let documents = manifest::parse(json).unwrap();
    let Document::Object(Object::Pod(pod)) = &documents[0] else {
        panic!("{documents:?}")
    };
    assert_eq!(
        pod.name,
        PodName {
            namespace: "default".into(),
            name: "p".into()
        }
    );
    assert_eq!(
        (&*pod.node, pod.host_network, pod.finished, pod.addresses.len()),
        ("n", true, true, 2)
    );
    assert_eq!(documents.len(), 2);
}

#[test]
fn a_problem_names_document_object_field_and_remedy() {
    let error = |text: &str| manifest::parse(text).unwrap_err().to_string();
    let text = format!(
        "{}---\napiVersion: v1\nkind: Node\nmetadata: {{name: b}}\nspec: {{podCIDRs: [10.1.0.7/24]}}\n",
        namespace("a", "1")
    );
    let message = error(&text);
    for part in [
        "document 2",
        "Node b",
        "spec.podCIDRs[0]",
        "write 10.1.0.0/24",
        "correct the field",
    ] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    let message =
        error("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {podIPs: [{ip: 10.0.0.256}]}\n");
    assert!(message.contains("status.podIPs[0].ip"), "{message}");
    assert!(error("kind: Pod\n").contains("apiVersion is missing"));
    assert!(error("a: [1\nb: 2").contains("correct the YAML"));
    assert!(error("apiVersion: v1\nkind: Namespace\nmetadata: {}\n").contains("metadata"));
    let message =
        error("apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {millrace.dev/addresses: x}}\n");
    assert!(message.contains("millrace.dev/addresses"), "{message}");
}

#[test]
fn a_bad_file_is_reported_and_its_last_good_version_stays() {
    let mut desk = Desk::new();
    desk.write("a.yaml", &namespace("one", "1"));
    assert_eq!(desk.heard.label("one"), Some("1"));
    desk.write("a.yaml", "kind: [");
    assert_eq!(desk.heard.label("one"), Some("1"));
    assert!(
        desk.heard.problems[0].contains("a.yaml"),
        "{:?}",
        desk.heard.problems
    );
    assert!(desk.heard.problems[0].contains("last good version"));
    // One bad document spoils its file, and no other.
    desk.write("b.yaml", &namespace("two", "1"));
    assert_eq!(desk.heard.label("two"), Some("1"));
    desk.write("a.yaml", &namespace("one", "2"));
    assert_eq!(desk.heard.label("one"), Some("2"));
    assert_eq!(desk.heard.problems, Vec::<String>::new());
}

#[test]
fn a_service_that_cannot_be_read_is_told_by_its_name_until_it_can() {
    let service = |namespace: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web{namespace}}}\n\
             spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
        )
    };
    let mut desk = Desk::new();
    desk.write("a.yaml", &service(", namespace: n", "10.96.0.300"));
    assert_eq!(desk.heard.unread, ["n/web"]);
    desk.write("b.yaml", &service("", "10.96.0.301"));
    assert_eq!(desk.heard.unread, ["n/web", "default/web"]);
    assert_eq!(desk.heard.problems.len(), 2);
    // Of what cannot be read at all nobody knows what it is.
    desk.write("a.yaml", "kind: [");
    assert_eq!(desk.heard.unread, ["default/web"]);
    desk.write("b.yaml", &service("", "10.96.0.30"));
    assert_eq!((desk.heard.unread.len(), desk.heard.problems.len()), (0, 1));
}

#[test]
fn files_appear_change_by_renaming_and_disappear() {
    let mut desk = Desk::new();
    assert_eq!(desk.scan(), 0);
    desk.write("a.yaml", &namespace("one", "1"));
    assert_eq!(desk.scan(), 0, "nothing changed, nothing is said");
    // Hidden and foreign names are not manifests.
    assert_eq!(desk.write(".a.yaml.swp", &namespace("x", "1")), 0);
    assert_eq!(desk.write("notes.txt", "hello"), 0);
    fs::write(desk.path.join(".new"), namespace("one", "2")).unwrap();
    fs::rename(desk.path.join(".new"), desk.path.join("a.yaml")).unwrap();
    desk.scan();
    assert_eq!(desk.heard.label("one"), Some("2"));
    fs::remove_file(desk.path.join("a.yaml")).unwrap();
    desk.scan();
    assert!(desk.heard.objects.is_empty());
}

#[test]
fn a_mounted_config_map_is_followed_through_its_links() {
    let mut desk = Desk::new();
    let version = |path: &Path, number: &str| {
        let data = path.join(format!("..{number}"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("a.yaml"), namespace("one", number)).unwrap();
        symlink(format!("..{number}"), path.join("..data_tmp")).unwrap();
        fs::rename(path.join("..data_tmp"), path.join("..data")).unwrap();
    };
    version(&desk.path, "1");
    symlink("..data/a.yaml", desk.path.join("a.yaml")).unwrap();
    desk.scan();
    assert_eq!(desk.heard.label("one"), Some("1"));
    version(&desk.path, "2");
    desk.scan();
    assert_eq!(desk.heard.label("one"), Some("2"));
    assert!(desk.heard.problems.is_empty(), "{:?}", desk.heard.problems);
}

#[test]
fn of_two_files_with_the_same_object_the_first_name_decides() {
    let mut desk = Desk::new();
    desk.write("b.yaml", &namespace("one", "b"));
    desk.write("a.yaml", &namespace("one", "a"));
    assert_eq!(desk.heard.label("one"), Some("a"));
    assert!(
        desk.heard.problems[0].contains("Namespace one"),
        "{:?}",
        desk.heard.problems
    );
    fs::remove_file(desk.path.join("a.yaml")).unwrap();
    desk.scan();
    assert_eq!(desk.heard.label("one"), Some("b"));
    assert!(desk.heard.problems.is_empty());
}

#[test]
fn unknown_kinds_are_reported_and_do_no_harm() {
    let mut desk = Desk::new();
    desk.write(
        "a.yaml",
        &format!(
            "{}---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n",
            namespace("one", "1")
        ),
    );
    assert_eq!(desk.heard.label("one"), Some("1"));
    assert!(
        desk.heard.problems[0].contains("v1 Secret is not understood yet"),
        "{:?}",
        desk.heard.problems
    );
}

#[test]
fn a_folder_that_appears_later_is_read_then() {
    let mut desk = Desk::new();
    fs::remove_dir(&desk.path).unwrap();
    assert_eq!(desk.scan(), 0);
    assert!(desk.folder.is_missing());
    fs::create_dir(&desk.path).unwrap();
    desk.write("a.yaml", &namespace("one", "1"));
    assert!(!desk.folder.is_missing());
    assert_eq!(desk.heard.label("one"), Some("1"));
}

#[tokio::test]
async fn the_watch_says_what_is_there_then_that_it_has_synced_then_what_changes() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.yaml"), namespace("one", "1")).unwrap();
    let (sender, mut events) = mpsc::channel(16);
    let task = tokio::spawn(watch(root.path().to_owned(), sender));
    assert!(matches!(events.recv().await, Some(Event::Set(_))));
    assert_eq!(events.recv().await, Some(Event::Synced(Source::Files)));
    fs::write(root.path().join(".b"), namespace("two", "1")).unwrap();
    fs::rename(root.path().join(".b"), root.path().join("b.yaml")).unwrap();
    let Some(Event::Set(object)) = events.recv().await else {
        panic!()
    };
    assert_eq!(object.key(), ObjectKey::Namespace("two".into()));
    fs::remove_file(root.path().join("a.yaml")).unwrap();
    assert_eq!(
        events.recv().await,
        Some(Event::Gone(ObjectKey::Namespace("one".into())))
    );
    drop(events);
    task.await.unwrap();
}

proptest! {
    /// Any text is an answer or an error, never a panic.
    #[test]
    fn any_text_is_refused_or_understood(text in "(?s).{0,300}") {
        let _ = manifest::parse(&text);
    }

    #[test]
    fn damaged_manifests_are_refused_or_understood(position in 0usize..400, byte in any::<u8>()) {
        let mut bytes = format!("{}---\n{}", namespace("a", "1"), r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"b"},"spec":{"podCIDRs":["10.0.0.0/8"]}}"#).into_bytes();
        let at = position % bytes.len();
        bytes[at] = byte;
        let _ = manifest::parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn rel_13_any_annotation_is_refused_or_understood(value in "(?s).{0,80}") {
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "annotations": {"millrace.dev/addresses": value}},
        });
        let _ = manifest::parse(&pod.to_string());
    }
}
