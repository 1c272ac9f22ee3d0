//! What is refused: mistakes, and whoever is not root.

use std::{
    fs,
    io::Read,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    thread,
    time::Duration,
};

use super::Node;
use crate::namespace::on_host;

#[test]
fn mistakes_are_named_with_what_to_do() {
    on_host(|host| {
        let node = Node::new(host);
        for (arguments, says) in [
            ("dump nothing", "conntrack"),
            ("dump events", "millrace monitor"),
            ("drops", "start the agent once"),
            ("monitor --reason nonsense", "martian"),
            ("conntrack list --proto tpc", "use tcp"),
            ("--config /does/not/exist status", "/does/not/exist"),
        ] {
            let output = node.run(arguments);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                !output.status.success() && text.contains(says),
                "{arguments}: {text}"
            );
        }
        assert!(node.run("completions bash").stdout.len() > 1000);
        assert!(node.run("config check").status.success());
        let file = node.path("config.yaml");
        let right = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{right}mtu: 100\n")).unwrap();
        let wrong = node.run("config check");
        assert_eq!(wrong.status.code(), Some(1));
        let text = String::from_utf8_lossy(&wrong.stdout) + String::from_utf8_lossy(&wrong.stderr);
        assert!(text.contains("mtu"), "{text}");
    });
}

/// What a socket says by itself to somebody else, as whom the calling thread goes on.
fn said_to(user: u32, socket: &Path) -> String {
    // SAFETY: three numbers. The call itself, unlike the C library's function, changes the calling thread alone.
    let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1, user, -1) };
    assert_eq!(changed, 0);
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    String::from_utf8_lossy(&said).into_owned()
}

/// Modes keep others out; these have been handed a way in.
#[test]
fn rel_14_sockets_that_others_can_reach_still_serve_root_alone() {
    const NOBODY: u32 = 65534;
    on_host(|host| {
        let mut node = Node::new(host);
        node.start("");
        let sockets = ["run/millrace/agent.sock", "run/millrace/admin.sock"].map(|name| node.path(name));
        for socket in &sockets {
            fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).unwrap();
        }
        let folders = sockets[0].ancestors().skip(1);
        for folder in folders.take_while(|folder| folder.starts_with(node.folder.path())) {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let [plugin, admin] =
            sockets.map(|socket| thread::spawn(move || said_to(NOBODY, &socket)).join().unwrap());
        assert_eq!(plugin, "", "the plugin's socket says nothing at all");
        assert!(admin.contains("only root may ask the agent"), "{admin}");
        assert_eq!(
            node.json("status --json")["agent"]["ready"],
            true,
            "root is served"
        );
    });
}
