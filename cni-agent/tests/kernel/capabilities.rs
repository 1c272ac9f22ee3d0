//! What the agent gives up.

use caps::{CapSet, Capability, CapsHashSet};
use cni_agent::capabilities::{NEEDED, reduce};

use crate::not_run::cannot_run;

#[test]
fn rel_51_all_but_the_named_capabilities_are_given_up() {
    if caps::read(None, CapSet::Permitted).unwrap().len() < 10 {
        return cannot_run("needs root");
    }
    // Capabilities belong to a thread.
    std::thread::spawn(|| {
        reduce().unwrap();
        let needed: CapsHashSet = NEEDED.into_iter().collect();
        for set in [CapSet::Effective, CapSet::Permitted, CapSet::Bounding] {
            assert_eq!(caps::read(None, set).unwrap(), needed, "{set:?}");
        }
        assert!(!needed.contains(&Capability::CAP_SYS_ADMIN));
    })
    .join()
    .unwrap();
}
