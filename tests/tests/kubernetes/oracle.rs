//! What Services promise, asked of Millrace and of the real kube-proxy in the same words.
//!
//! Where the two differ, or both from what is wanted, it is listed in `deviations` with its reason; what is listed and
//! does not differ any more is a failure too. All tests here share one run.

mod affinity;
mod cases;
mod choice;
mod contender;
mod deviations;
mod flows;
mod health;
mod intake;
mod services;
mod talk;

use std::{
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use cni_tests::lab::kube_proxy;

use crate::needs_control_plane;
use cases::{CASES, SILENCE};
use contender::{Contender, Proxy};
use deviations::{DEVIATIONS, Deviation};
use flows::FLOWS;
use health::{CHECKS, OWN};

fn listed(case: &str) -> Option<&'static Deviation> {
    DEVIATIONS
        .iter()
        .find(|deviation| deviation.cases.contains(&case))
}

/// How something is to go with one of the two.
fn expected(case: &str, wanted: &'static str, proxy: Proxy) -> &'static str {
    listed(case).map_or(wanted, |deviation| match proxy {
        Proxy::Millrace => deviation.millrace,
        Proxy::Kube => deviation.kube_proxy,
    })
}

/// What became of a case.
#[derive(Debug)]
struct Outcome {
    case: &'static str,
    wanted: &'static str,
    millrace: String,
    kube_proxy: String,
}

impl Outcome {
    fn complaint(&self) -> Option<String> {
        let expect = |proxy| expected(self.case, self.wanted, proxy);
        let good = self.millrace == expect(Proxy::Millrace) && self.kube_proxy == expect(Proxy::Kube);
        let reason = listed(self.case).map_or("nothing is listed", |deviation| deviation.reason);
        (!good).then(|| format!("{self:#?} ({reason})"))
    }
}

/// Who waits for silence waits beside others.
fn ask_all(contender: &Contender) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![String::new(); CASES.len()]);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = CASES.get(place) else { break };
                    let silence = expected(case.name, case.wanted, contender.proxy).contains(SILENCE);
                    let said = contender.observe(case, silence);
                    found.lock().unwrap()[place] = said;
                }
            });
        }
    });
    found.into_inner().unwrap()
}

fn observe(proxy: Proxy) -> Vec<String> {
    let services = [services::all(), flows::before()].concat();
    let mut contender = Contender::start(proxy, &services);
    let mut seen = ask_all(&contender);
    seen.extend(health::observe(&contender));
    let wanted = |flow: &flows::Flow| expected(flow.name, flow.wanted, proxy);
    seen.extend(flows::observe(&mut contender, wanted));
    seen.extend(health::observe_itself(&contender));
    seen
}

/// All names, and how each is to go.
fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    let cases = CASES.iter().map(|case| (case.name, case.wanted));
    let checks = CHECKS.iter().map(|check| (check.name, check.wanted));
    let flows = FLOWS.iter().map(|flow| (flow.name, flow.wanted));
    let own = OWN.iter().map(|(name, _, _, wanted)| (*name, *wanted));
    cases.chain(checks).chain(flows).chain(own)
}

fn outcomes() -> &'static [Outcome] {
    static OUTCOMES: OnceLock<Vec<Outcome>> = OnceLock::new();
    OUTCOMES.get_or_init(|| {
        let [ours, theirs] = thread::scope(|scope| {
            let both = [Proxy::Millrace, Proxy::Kube].map(|proxy| scope.spawn(move || observe(proxy)));
            both.map(|one| one.join().unwrap())
        });
        let outcome = |((name, wanted), (millrace, kube_proxy))| Outcome {
            case: name,
            wanted,
            millrace,
            kube_proxy,
        };
        all().zip(ours.into_iter().zip(theirs)).map(outcome).collect()
    })
}

/// The cases that begin with one of these statements.
fn holds(statements: &[u8]) {
    needs_control_plane!();
    cni_tests::require!(
        kube_proxy::is_available(),
        "no kube-proxy; `cargo xtask test kubernetes` builds it"
    );
    let is_of = |statement: &u8, name: &str| {
        name.split([':', ','])
            .any(|number| number.trim() == statement.to_string())
    };
    for statement in statements {
        assert!(
            outcomes().iter().any(|outcome| is_of(statement, outcome.case)),
            "no case of {statement}"
        );
    }
    let of_these = outcomes()
        .iter()
        .filter(|outcome| statements.iter().any(|statement| is_of(statement, outcome.case)));
    let complaints: Vec<String> = of_these.filter_map(Outcome::complaint).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn svc_01_svc_02_svc_03_what_is_not_to_be_served_is_not_as_with_kube_proxy() {
    holds(&[1, 2, 3]);
}

#[test]
fn svc_04_svc_06_svc_07_svc_09_svc_10_slices_and_families_are_read_as_by_kube_proxy() {
    holds(&[4, 6, 7, 9, 10]);
}

#[test]
fn svc_11_svc_12_svc_13_svc_14_who_is_ready_or_leaves_is_chosen_as_by_kube_proxy() {
    holds(&[11, 12, 13, 14]);
}

#[test]
fn svc_15_svc_16_svc_17_svc_18_svc_19_hints_are_obeyed_as_by_kube_proxy() {
    holds(&[15, 16, 17, 18, 19]);
}

#[test]
fn svc_21_svc_22_svc_23_svc_24_a_cluster_ip_is_reached_as_with_kube_proxy() {
    holds(&[21, 22, 23, 24]);
}

#[test]
fn svc_25_svc_26_svc_28_svc_29_who_is_refused_or_dropped_inside_is_so_with_kube_proxy() {
    holds(&[25, 26, 28, 29]);
}

#[test]
fn svc_27_svc_30_svc_31_svc_32_node_ports_answer_where_they_do_with_kube_proxy() {
    holds(&[27, 30, 31, 32]);
}

#[test]
fn svc_33_svc_34_svc_35_external_policies_are_those_of_kube_proxy() {
    holds(&[33, 34, 35]);
}

#[test]
fn svc_36_svc_37_the_clusters_own_are_not_bound_by_the_external_policy_as_with_kube_proxy() {
    holds(&[36, 37]);
}

#[test]
fn svc_38_without_endpoints_everything_refuses_as_with_kube_proxy() {
    holds(&[38]);
}

#[test]
fn svc_39_svc_40_svc_41_svc_42_svc_43_load_balancers_are_served_as_by_kube_proxy() {
    holds(&[39, 40, 41, 42, 43]);
}

#[test]
fn svc_44_svc_45_svc_46_svc_47_svc_48_load_balancers_hear_of_a_node_and_its_endpoints_as_from_kube_proxy() {
    holds(&[44, 45, 46, 47, 48]);
}

#[test]
fn svc_49_svc_50_svc_51_a_client_has_one_endpoint_by_all_addresses_and_as_long_as_with_kube_proxy() {
    holds(&[49, 50, 51]);
}

#[test]
fn svc_52_streams_stay_as_with_kube_proxy() {
    holds(&[52]);
}

#[test]
fn svc_53_svc_54_svc_55_datagrams_stay_or_go_as_with_kube_proxy() {
    holds(&[53, 54, 55]);
}

#[test]
fn no_deviation_is_listed_twice_or_for_nothing() {
    for name in DEVIATIONS.iter().flat_map(|deviation| deviation.cases) {
        assert_eq!(all().filter(|(case, _)| case == name).count(), 1, "{name}");
        assert_eq!(
            DEVIATIONS
                .iter()
                .filter(|deviation| deviation.cases.contains(name))
                .count(),
            1,
            "{name}"
        );
    }
    for deviation in DEVIATIONS {
        let for_nothing = |(name, wanted): (&str, &str)| {
            let as_wanted = wanted == deviation.millrace && wanted == deviation.kube_proxy;
            deviation.cases.contains(&name) && as_wanted
        };
        assert!(!all().any(for_nothing), "{deviation:?}");
    }
}
