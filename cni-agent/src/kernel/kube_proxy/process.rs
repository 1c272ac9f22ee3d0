//! Whether a kube-proxy runs. A container does not see the host's processes, but its ports.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
const METRICS: u16 = 10249;
const HEALTH: u16 = 10256;
/// With one that is busy: to take it for none would have its rules removed. Where none listens, nothing is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// What Millrace, which answers on the same ports in the same words, calls itself in the header `Server`.
pub const OURS: &str = "millrace";
/// As much of an answer as is looked at.
const LONGEST: u64 = 4096;

/// How one that runs on this node tells the kernel (`nftables`, `iptables`, `ipvs`); empty if it does not say.
pub fn running() -> Option<String> {
    LOOPBACK.into_iter().find_map(mode).or_else(|| {
        // Metrics may be switched off.
        let ours = format!("server: {OURS}");
        let is_one = |page: String| page.contains("\"lastUpdated\"") && !page.to_lowercase().contains(&ours);
        let healthy = |ip| get(SocketAddr::new(ip, HEALTH), "/healthz").is_ok_and(is_one);
        LOOPBACK.into_iter().any(healthy).then(String::new)
    })
}

fn mode(ip: IpAddr) -> Option<String> {
    let page = get(SocketAddr::new(ip, METRICS), "/proxyMode").ok()?;
    let (head, mode) = page.split_once("\r\n\r\n")?;
    let known = ["nftables", "iptables", "ipvs"].contains(&mode.trim());
    (known && head.contains(" 200 ")).then(|| mode.trim().to_owned())
}

fn get(at: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
