use super::*;

struct Host {
    folder: tempfile::TempDir,
    config: Config,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.cni.install = Some(true);
        config.cni.conflist = folder.path().join("05-millrace.conflist");
        Self { folder, config }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn cni_08_it_is_there_only_when_pods_can_be_served() {
    let host = Host::new();
    let (publish, status) = watch::channel(Arc::new(Status::default()));
    let (events, _heard) = mpsc::channel(8);
    let task = tokio::spawn(Conflist::new(&host.config).keep(status, events));
    tokio::task::yield_now().await;
    assert!(host.names().is_empty());
    let ready = Status {
        ready: true,
        ..Status::default()
    };
    publish.send(Arc::new(ready)).unwrap();
    while host.names() != ["05-millrace.conflist"] {
        tokio::task::yield_now().await;
    }
    // What is not served for a while is not withdrawn.
    publish.send(Arc::new(Status::default())).unwrap();
    tokio::task::yield_now().await;
    assert_eq!(host.names(), ["05-millrace.conflist"]);
    task.abort();
}

#[test]
fn rel_20_others_may_read_it_and_nothing_more() {
    let host = Host::new();
    let conflist = Conflist::new(&host.config);
    assert_eq!(conflist.put(), Vec::<String>::new());
    let path = &host.config.cni.conflist;
    assert_eq!(mode(path), 0o644);
    fs::set_permissions(path, Permissions::from_mode(0o4777)).unwrap();
    conflist.put();
    assert_eq!(mode(path), 0o644);
    let list: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(list["plugins"], json!([{ "type": "millrace-cni" }]));
}

#[test]
fn chained_plugins_come_after_ours_which_then_uses_the_stack() {
    let mut host = Host::new();
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    host.config.cni.chained = vec![portmap.as_object().unwrap().clone()];
    host.config.paths.state = "/elsewhere".into();
    let list: Value = serde_json::from_str(&Conflist::new(&host.config).text).unwrap();
    let ours = json!({ "type": "millrace-cni", "stateDir": "/elsewhere", "viaStack": true });
    assert_eq!(list["plugins"], json!([ours, portmap]));
    // Debian 12's portmap refuses anything newer.
    assert_eq!(list["cniVersion"], "1.0.0");
    assert_eq!(list["cniVersions"], Value::Null);
    host.config.cni.cni_version = "1.1.0".into();
    let list: Value = serde_json::from_str(&Conflist::new(&host.config).text).unwrap();
    assert_eq!(list["cniVersion"], "1.1.0");
}

#[test]
fn runtimes_that_know_the_newest_version_may_choose_it_and_older_ones_are_not_refused() {
    let mut host = Host::new();
    let list = |host: &Host| -> Value { serde_json::from_str(&Conflist::new(&host.config).text).unwrap() };
    // Debian 12's containerd refuses anything newer.
    assert_eq!(list(&host)["cniVersion"], "1.0.0");
    assert_eq!(list(&host)["cniVersions"], json!(["1.0.0", "1.1.0"]));
    host.config.cni.cni_version = "1.1.0".into();
    assert_eq!(list(&host)["cniVersions"], Value::Null);
}

#[test]
fn another_network_that_would_win_is_named_or_moved_aside() {
    let mut host = Host::new();
    for name in ["00-other.conflist", "10-later.conf", "readme.txt"] {
        fs::write(host.folder.path().join(name), "{}").unwrap();
    }
    let problems = Conflist::new(&host.config).put();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("00-other.conflist") && problems[0].contains("cni.moveOthersAside"));
    host.config.cni.move_others_aside = true;
    assert_eq!(Conflist::new(&host.config).put(), Vec::<String>::new());
    assert_eq!(
        host.names(),
        [
            "00-other.conflist.millrace-aside",
            "05-millrace.conflist",
            "10-later.conf.millrace-aside",
            "readme.txt"
        ]
    );
}

#[test]
fn what_was_moved_aside_has_its_name_back_unless_another_has_it() {
    let mut host = Host::new();
    host.config.cni.move_others_aside = true;
    for (name, text) in [("00-other.conflist", "old"), ("10-later.conf", "{}")] {
        fs::write(host.folder.path().join(name), text).unwrap();
    }
    let path = &host.config.cni.conflist;
    assert_eq!(Conflist::new(&host.config).put(), Vec::<String>::new());
    assert!(remove(path).unwrap());
    assert!(!remove(path).unwrap());
    fs::write(host.folder.path().join("00-other.conflist"), "new").unwrap();
    let results = bring_back(path);
    let [(other, refused), (later, done)] = &results[..] else {
        panic!("{results:?}")
    };
    assert_eq!(other.file_name().unwrap(), "00-other.conflist");
    assert!(
        refused
            .as_ref()
            .unwrap_err()
            .to_string()
            .contains("00-other.conflist.millrace-aside")
    );
    assert_eq!(later.file_name().unwrap(), "10-later.conf");
    assert!(done.is_ok());
    assert_eq!(
        host.names(),
        [
            "00-other.conflist",
            "00-other.conflist.millrace-aside",
            "10-later.conf"
        ]
    );
    let kept = fs::read_to_string(host.folder.path().join("00-other.conflist")).unwrap();
    assert_eq!(kept, "new");
}

#[test]
fn the_end_withdraws_it_only_if_that_was_wanted() {
    let mut host = Host::new();
    Conflist::new(&host.config).put();
    Conflist::new(&host.config).leave();
    assert_eq!(host.names(), ["05-millrace.conflist"]);
    host.config.cni.on_exit = OnExit::Withdraw;
    Conflist::new(&host.config).leave();
    Conflist::new(&host.config).leave();
    assert!(host.names().is_empty());
    let mut nowhere = Host::new();
    nowhere.config.cni.conflist = "/no/such/folder/a.conflist".into();
    assert!(Conflist::new(&nowhere.config).put()[0].contains("cni.conflist"));
}

#[test]
fn the_plugin_leaves_the_switch_for_grace_periods_alone_if_the_agent_does() {
    let mut host = Host::new();
    assert!(!Conflist::new(&host.config).text.contains("rcuExpedited"));
    host.config.paths.rcu_expedited = Default::default();
    let list: Value = serde_json::from_str(&Conflist::new(&host.config).text).unwrap();
    assert_eq!(list["plugins"][0]["rcuExpedited"], "");
}
