//! Clusters that are not as they are without a word.

use super::{
    kubernetes::Kubernetes,
    leftovers::{Named, machine},
    workloads::everybody_reaches_everything,
};

#[test]
fn clusters_of_other_networks_proxies_and_families_come_up_work_and_go() {
    let before = machine();
    let cluster = Named("mrplans");
    for plan in [
        "--cni bridge --proxy kube-proxy-iptables --family v4",
        "--cni millrace --routing direct --family v6",
        "--cni bridge --proxy kube-proxy-nft --family dual",
    ] {
        eprintln!("{plan}");
        let options: Vec<&str> = plan.split(' ').collect();
        cluster.run(&[&["up"], &options[..]].concat());
        everybody_reaches_everything(&Kubernetes::of(&cluster, "plans"));
        cluster.run(&["down"]);
        cluster.left_nothing(&before);
    }
}
