//! Daemons that configure the network and remove what they did not make.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{Check, State};

/// Looks at the daemons that run on the host whose root is `root`.
pub(super) fn checks(root: &Path, tunnel: &str) -> Vec<Check> {
    let mut checks = Vec::new();
    if root.join("run/systemd/netif/state").exists() {
        checks.push(networkd(root));
    }
    if root.join("run/NetworkManager").exists() {
        checks.push(network_manager(root, tunnel));
    }
    checks
}

/// networkd removes routes that it does not know whenever it is restarted or a link flaps, unless told not to.
fn networkd(root: &Path) -> Check {
    const NAME: &str = "systemd-networkd";
    let folders = [
        "usr/lib/systemd",
        "usr/local/lib/systemd",
        "run/systemd",
        "etc/systemd",
    ];
    let mut files = vec![root.join("etc/systemd/networkd.conf")];
    files.extend(drop_ins(
        folders
            .iter()
            .map(|folder| root.join(folder).join("networkd.conf.d")),
    ));
    let mut manages = true;
    for file in files {
        // The last word counts, as networkd reads it.
        if let Some(value) = setting(&file, "ManageForeignRoutes") {
            manages = !matches!(
                value.to_ascii_lowercase().as_str(),
                "no" | "false" | "0" | "off" | "n" | "f"
            );
        }
    }
    if !manages {
        return Check::ok(NAME, "leaves foreign routes alone");
    }
    Check::new(
        NAME,
        State::Warning,
        "removes routes that it did not make when it restarts; the agent puts them back, with a gap",
        "write /etc/systemd/networkd.conf.d/millrace.conf with `[Network]`, `ManageForeignRoutes=no` and \
         `ManageForeignRoutingPolicyRules=no`, and restart systemd-networkd",
    )
}

fn network_manager(root: &Path, tunnel: &str) -> Check {
    const NAME: &str = "NetworkManager";
    let folders = [
        "usr/lib/NetworkManager/conf.d",
        "run/NetworkManager/conf.d",
        "etc/NetworkManager/conf.d",
    ];
    let mut files = vec![root.join("etc/NetworkManager/NetworkManager.conf")];
    files.extend(drop_ins(folders.iter().map(|folder| root.join(folder))));
    let unmanaged = files
        .iter()
        .rev()
        .find_map(|file| setting(file, "unmanaged-devices"))
        .unwrap_or_default();
    let covers = |pattern: &str| unmanaged.split([';', ',']).any(|part| part.trim() == pattern);
    if covers("interface-name:mr*")
        && (covers(&format!("interface-name:{tunnel}")) || covers("interface-name:millrace*"))
    {
        return Check::ok(NAME, "leaves Millrace's devices alone");
    }
    Check::new(
        NAME,
        State::Warning,
        "may take over Millrace's devices and remove their routes",
        format!(
            "write /etc/NetworkManager/conf.d/millrace.conf with `[keyfile]` and \
             `unmanaged-devices=interface-name:mr*;interface-name:{tunnel}`, and reload NetworkManager"
        ),
    )
}

/// Files of drop-in folders by name; of two with one name the later folder's counts.
fn drop_ins(folders: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut files = BTreeMap::new();
    for folder in folders {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "conf")
            {
                files.insert(entry.file_name(), entry.path());
            }
        }
    }
    files.into_values().collect()
}

/// The last value of a key of an INI file.
fn setting(file: &Path, key: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    text.lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim().to_owned())
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_host_without_daemons_has_nothing_to_say() {
        let root = tempfile::tempdir().unwrap();
        assert!(checks(root.path(), "millrace.vx").is_empty());
    }

    #[test]
    fn networkd_must_be_told_to_leave_routes_alone() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "run/systemd/netif/state", "");
        write(
            root.path(),
            "etc/systemd/networkd.conf",
            "[Network]\n#ManageForeignRoutes=no\n",
        );
        assert_eq!(checks(root.path(), "millrace.vx")[0].state, State::Warning);
        write(
            root.path(),
            "usr/lib/systemd/networkd.conf.d/10-x.conf",
            "[Network]\nManageForeignRoutes = yes\n",
        );
        write(
            root.path(),
            "etc/systemd/networkd.conf.d/millrace.conf",
            "[Network]\nManageForeignRoutes=no\n",
        );
        assert_eq!(checks(root.path(), "millrace.vx")[0].state, State::Ok);
    }

    #[test]
    fn network_manager_must_not_manage_our_devices() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "run/NetworkManager/x", "");
        let check = checks(root.path(), "millrace.vx").remove(0);
        assert!(check.remedy.contains("interface-name:mr*"), "{check:?}");
        let text = "[keyfile]\nunmanaged-devices=interface-name:mr*;interface-name:millrace.vx\n";
        write(root.path(), "etc/NetworkManager/conf.d/m.conf", text);
        assert_eq!(checks(root.path(), "millrace.vx")[0].state, State::Ok);
    }
}
