//! A kube-proxy beside Services of Millrace's own, or what one has left.

use std::io;

use super::{
    super::kube_proxy::{Leftovers, running},
    Check, State,
};
use crate::config::{Config, Proxy};

const NAME: &str = "kube-proxy";
/// Names in one line.
const SOME: usize = 4;

/// Nothing if Services are the stack's business.
pub fn check(config: &Config) -> Option<Check> {
    (config.services.proxy == Proxy::Millrace).then(|| judge(running().as_deref(), Leftovers::find))
}

/// What one that runs has made is not asked for: it may be tens of thousands of rules.
fn judge(running: Option<&str>, leftovers: impl FnOnce() -> io::Result<Leftovers>) -> Check {
    let warning = |detail: String, remedy: &str| Check::new(NAME, State::Warning, detail, remedy);
    if let Some(mode) = running {
        let mode = if mode.is_empty() { "an unknown" } else { mode };
        return warning(
            format!("one runs (mode {mode}) beside Services of Millrace's own"),
            "remove it (`kubectl --namespace kube-system delete daemonset kube-proxy`, or the service of the host), then \
             `millrace kube-proxy cleanup` on each node",
        );
    }
    let found = match leftovers() {
        Ok(found) => found,
        Err(error) => {
            return warning(
                format!("the packet filters cannot be asked: {error}"),
                "run as root with CAP_NET_ADMIN",
            );
        }
    };
    let names: Vec<String> = found.removable().map(|found| found.to_string()).collect();
    if !names.is_empty() {
        let more = match names.len().saturating_sub(SOME) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let some: Vec<String> = names.into_iter().take(SOME).collect();
        return warning(
            format!("one has left {}{more}", some.join(", ")),
            "`millrace kube-proxy cleanup`",
        );
    }
    if !found.foreign().is_empty() {
        return warning(
            format!("one has left {}", found.foreign().join(", ")),
            "`kube-proxy --cleanup` with kube-proxy's own image",
        );
    }
    if found.is_held() {
        let connections = found.connections;
        return Check {
            remedy: "`millrace kube-proxy cleanup` once more when they have ended".to_owned(),
            ..Check::ok(
                NAME,
                format!("{connections} connections go on that one has translated"),
            )
        };
    }
    Check::ok(NAME, "no trace of one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_runs_is_said_before_what_it_has_made() {
        let check = judge(Some("nftables"), || Ok(Leftovers::default()));
        assert_eq!(check.state, State::Warning);
        assert!(check.detail.contains("mode nftables"), "{check:?}");
        assert!(check.remedy.contains("delete daemonset kube-proxy"), "{check:?}");
        assert_eq!(judge(None, || Ok(Leftovers::default())).state, State::Ok);
        let error = judge(None, || Err(io::Error::other("no")));
        assert_eq!(error.state, State::Warning);
    }
}
