//! A delegated IPAM plugin that records its calls.

use super::Node;
use std::{fs, os::unix::fs::PermissionsExt};

impl Node {
    /// Installs an IPAM plugin `ipam-test` that prints `result` for ADD and fails the verbs of `failing`.
    pub(crate) fn install_ipam(&self, result: &str, failing: &str) {
        let folder = self.folder.path().display();
        let script = format!(
            "#!/bin/sh\n\
             cat > {folder}/ipam.stdin\n\
             echo \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME\" >> {folder}/ipam.log\n\
             case \" {failing} \" in *\" $CNI_COMMAND \"*)\n\
               echo '{{\"cniVersion\":\"1.1.0\",\"code\":123,\"msg\":\"refused by ipam-test\"}}'; exit 1;; esac\n\
             if [ \"$CNI_COMMAND\" = ADD ]; then echo '{result}'; fi\n"
        );
        let path = self.folder.path().join("ipam-test");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The verbs that it was called with.
    pub(crate) fn ipam_calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.folder.path().join("ipam.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}
