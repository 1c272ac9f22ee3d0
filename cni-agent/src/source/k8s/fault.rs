//! What a failure means for the person who has to repair it.

use kube::runtime::watcher;

use super::{crd::PLURAL, servers::Unanswered};

/// The role whose rules `rbac.yaml` has.
pub(super) const CLUSTER_ROLE: &str = "millrace";

/// `None`: nothing is wrong, the watch begins anew.
pub(super) fn of_watch(resource: &str, error: &watcher::Error) -> Option<String> {
    let (verb, error) = match error {
        watcher::Error::InitialListFailed(error) => ("list", error),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => ("watch", error),
        watcher::Error::WatchError(status) => {
            return of_status("watch", resource, status.code, &status.message);
        }
        watcher::Error::NoResourceVersion => {
            return Some(format!(
                "{resource}: the API server's answer has no resourceVersion; update the API server"
            ));
        }
    };
    of_request(verb, resource, error)
}

/// What is wrong with one request.
pub(super) fn of_request(verb: &str, resource: &str, error: &kube::Error) -> Option<String> {
    match error {
        kube::Error::Api(status) => of_status(verb, resource, status.code, &status.message),
        kube::Error::Service(cause) => Some(match cause.downcast_ref::<Unanswered>() {
            Some(unanswered) => of_server(unanswered),
            None => format!("{verb} {resource}: {cause}; see the API server's log"),
        }),
        kube::Error::Auth(cause) => Some(format!(
            "the credentials for the API server cannot be used: {cause}; renew them, see kubernetes.tokenFile and kubernetes.kubeconfig"
        )),
        kube::Error::SerdeError(cause) => Some(format!(
            "{verb} {resource}: an answer of the API server is not understood: {cause}; update Millrace or the API server"
        )),
        // A connection that broke in the middle: the next attempt says more, or succeeds.
        kube::Error::ReadEvents(_) | kube::Error::HyperError(_) => None,
        other => Some(format!("{verb} {resource}: {other}; see the API server's log")),
    }
}

fn of_server(unanswered: &Unanswered) -> String {
    let Unanswered {
        url,
        reason,
        untrusted,
    } = unanswered;
    if *untrusted {
        format!(
            "the certificate of the API server {url} is not trusted ({reason}); set kubernetes.caFile to the authority that signed it"
        )
    } else {
        format!(
            "no API server answers at {url} ({reason}); pods keep their network as it is. Start it, or correct kubernetes.apiServers"
        )
    }
}

fn of_status(verb: &str, resource: &str, code: u16, message: &str) -> Option<String> {
    match code {
        // The version is too old to go on from: a new list follows.
        410 => None,
        401 => Some(
            "the API server does not accept the credentials (401): the token or certificate has expired or is of another cluster; renew it, see kubernetes.tokenFile and kubernetes.kubeconfig"
                .to_owned(),
        ),
        403 => Some(format!(
            "the API server forbids to {verb} {resource} (403: {message}); apply the ClusterRole {CLUSTER_ROLE} and its binding from cni-agent/deploy/base/rbac.yaml"
        )),
        404 => Some(match resource {
            PLURAL => format!(
                "the API server has no {resource} of this version, so that defaults hold; apply the output of `millrace crds`"
            ),
            "servicecidrs" => format!("the API server has no {resource} of this version; update the API server"),
            _ => format!(
                "whoever answers for the API server has no {resource} (404: {message}); what was heard before stays in force. Correct kubernetes.apiServers, or update the API server"
            ),
        }),
        _ => Some(format!(
            "the API server does not {verb} {resource} ({code}: {message}); see its log"
        )),
    }
}

/// Whether the server refuses to stream a list: it is older, or was told not to.
pub(super) fn cannot_stream(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if matches!(status.code, 400 | 422))
}

/// Whether the server has no such object.
pub(super) fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether the server has no such kind at all.
pub(super) fn is_unknown(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) if is_gone(error)
    )
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn status(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(Status {
            code,
            message: "pods is forbidden: User \"a\" cannot list resource \"pods\"".into(),
            ..Status::default()
        }))
    }

    #[test]
    fn each_failure_names_what_repairs_it() {
        for (code, resource, words) in [
            (401, "pods", ["401", "kubernetes.tokenFile"]),
            (403, "pods", ["list pods", "ClusterRole millrace"]),
            (404, "millraceconfigs", ["millraceconfigs", "millrace crds"]),
            (404, "servicecidrs", ["servicecidrs", "update the API server"]),
            (404, "pods", ["no pods (404", "kubernetes.apiServers"]),
            (500, "pods", ["500", "its log"]),
        ] {
            let text = of_watch(resource, &watcher::Error::InitialListFailed(status(code))).unwrap();
            assert!(words.iter().all(|word| text.contains(word)), "{code}: {text}");
            // The remedy stands behind the last semicolon, where `millrace status` looks for it.
            assert!(text.contains("; "), "{text}");
        }
        let gone = watcher::Error::WatchStartFailed(status(410));
        assert_eq!(of_watch("pods", &gone), None);
    }

    #[test]
    fn a_server_that_is_away_is_told_from_one_that_is_not_trusted() {
        let text = |untrusted| {
            let unanswered = Unanswered {
                url: "https://192.0.2.1:6443".into(),
                reason: "why".into(),
                untrusted,
            };
            of_request("list", "pods", &kube::Error::Service(unanswered.into())).unwrap()
        };
        assert!(text(true).contains("kubernetes.caFile") && text(true).contains("why"));
        assert!(text(false).contains("kubernetes.apiServers") && text(false).contains("192.0.2.1"));
    }

    #[test]
    fn an_older_server_is_asked_for_pages() {
        for (code, cannot) in [(400, true), (422, true), (403, false), (410, false)] {
            let error = watcher::Error::WatchStartFailed(status(code));
            assert_eq!(cannot_stream(&error), cannot, "{code}");
        }
        assert!(is_unknown(&watcher::Error::InitialListFailed(status(404))));
    }
}
