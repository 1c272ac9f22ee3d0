//! The test layer `cluster`: a cluster without kube-proxy, the tests in `tests/tests/cluster` and upstream's conformance
//! specs on it; then one with kube-proxy, and the specs again.

use anyhow::{Context, Result};

use super::place::Place;
use super::plan::{Plan, Proxy};
use super::{down, e2e, up};
use crate::process::step;
use crate::test::{Tally, cargo_test, libtest};

/// Gone when this value is, unless the machine lost its power.
struct Up(Place);

impl Drop for Up {
    fn drop(&mut self) {
        if let Err(error) = down::cluster(&self.0) {
            eprintln!("error: removing cluster `{}`: {error:#}", self.0);
        }
    }
}

/// With arguments for the test program the specs are left out: who picks tests wants those.
pub(crate) fn test(arguments: &[String]) -> Result<Tally> {
    let place: Place = "mrtest".parse().map_err(anyhow::Error::msg)?;
    let cluster = Up(place.clone());
    up::bring_up(&place, &Plan::default())?;
    let mut tests = cargo_test();
    tests.args(["--package", "cni-tests", "--test", "cluster"]);
    let own = std::env::current_exe().context("finding this program")?;
    tests
        .env("MILLRACE_XTASK", own)
        .env("MILLRACE_CLUSTER", place.to_string());
    let mut tally = libtest(tests, arguments)?;
    if arguments.is_empty() {
        step("the list of upstream's other network specs");
        tally += e2e::check_list()?;
        step("upstream's network conformance specs");
        tally += e2e::conformance(&place)?;
    }
    drop(cluster);
    if arguments.is_empty() {
        step("the same beside kube-proxy");
        let cluster = Up(place.clone());
        let beside = Plan {
            proxy: Some(Proxy::KubeProxyNft),
            ..Plan::default()
        };
        up::bring_up(&place, &beside)?;
        tally += e2e::conformance(&place)?;
        drop(cluster);
    }
    Ok(tally)
}
