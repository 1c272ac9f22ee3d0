//! Events of the ring buffer, in words.

use std::{fmt, net::IpAddr};

use cni_ebpf::abi::{self, Reason, event_kind, hook};
use serde::{Deserialize, Serialize};

use super::counters::direction_name;

/// An event as people and scripts read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Nanoseconds of the monotonic clock.
    pub time: u64,
    pub kind: String,
    /// Why it was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub direction: String,
    pub hook: String,
    pub protocol: String,
    pub src: IpAddr,
    pub src_port: u16,
    pub dst: IpAddr,
    pub dst_port: u16,
    /// What the originator dialled, if it was translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialled: Option<(IpAddr, u16)>,
    pub reply: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tcp_flags: String,
    pub endpoint: u32,
    pub ifindex: u32,
    pub rule: u32,
    pub length: u32,
}

/// The name of an IP protocol.
pub fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

/// The number of a protocol, from its name or its number.
pub fn protocol_number(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmpv6" | "icmp6" => Ok(58),
        "sctp" => Ok(132),
        other => other
            .parse()
            .map_err(|_| format!("{text:?} is no protocol: use tcp, udp, sctp, icmp, icmpv6 or 0-255")),
    }
}

fn flags_text(flags: u8) -> String {
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set = NAMES
        .iter()
        .enumerate()
        .filter(|(bit, _)| flags & (1 << bit) != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

impl From<&abi::Event> for Record {
    fn from(event: &abi::Event) -> Self {
        let kind = match event.kind {
            event_kind::DROP => "drop",
            event_kind::NEW => "new",
            event_kind::CLOSE => "close",
            event_kind::FLAGS => "flags",
            _ => "unknown",
        };
        let hook = match event.hook {
            hook::FROM_POD => "from_pod",
            hook::TO_POD => "to_pod",
            hook::FROM_NETDEV => "from_netdev",
            hook::TO_NETDEV => "to_netdev",
            hook::XDP_NODEPORT => "xdp_nodeport",
            _ => "unknown",
        };
        let dropped = event.kind == event_kind::DROP;
        let translated = event.dnat != abi::Addr::UNSPECIFIED;
        Self {
            time: event.time,
            kind: kind.to_owned(),
            reason: dropped.then(|| {
                Reason::from_number(event.reason)
                    .map_or("unknown", Reason::name)
                    .to_owned()
            }),
            direction: direction_name(event.direction).to_owned(),
            hook: hook.to_owned(),
            protocol: protocol_name(event.proto),
            src: event.src.into(),
            src_port: event.src_port.get(),
            dst: event.dst.into(),
            dst_port: event.dst_port.get(),
            dialled: translated.then(|| (event.dnat.into(), event.dnat_port.get())),
            reply: event.reply != 0,
            tcp_flags: flags_text(event.tcp_flags),
            endpoint: event.endpoint,
            ifindex: event.ifindex,
            rule: event.rule,
            length: event.length,
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.time / 1_000_000_000;
        let micros = self.time % 1_000_000_000 / 1000;
        let src = std::net::SocketAddr::new(self.src, self.src_port);
        let dst = std::net::SocketAddr::new(self.dst, self.dst_port);
        write!(
            f,
            "{seconds:>7}.{micros:06} {:<5} {:<6} {src} -> {dst}",
            self.kind, self.protocol
        )?;
        if let Some(reason) = &self.reason {
            write!(f, " {reason} ({}, {})", self.direction, self.hook)?;
        }
        if !self.tcp_flags.is_empty() {
            write!(f, " [{}]", self.tcp_flags)?;
        }
        if self.endpoint != 0 {
            write!(f, " endpoint {}", self.endpoint)?;
        }
        if self.rule != 0 {
            write!(f, " rule {}", self.rule)?;
        }
        Ok(())
    }
}

/// Which events somebody wants. Everything that is set must agree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    pub kinds: Vec<String>,
    pub reasons: Vec<String>,
    pub endpoint: Option<u32>,
    /// Either side.
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
    pub protocol: Option<String>,
}

impl Filter {
    pub fn wants(&self, record: &Record) -> bool {
        let listed = |list: &[String], value: Option<&String>| {
            list.is_empty() || value.is_some_and(|value| list.contains(value))
        };
        listed(&self.kinds, Some(&record.kind))
            && listed(&self.reasons, record.reason.as_ref())
            && self.endpoint.is_none_or(|endpoint| endpoint == record.endpoint)
            && self.address.is_none_or(|ip| ip == record.src || ip == record.dst)
            && self
                .port
                .is_none_or(|port| port == record.src_port || port == record.dst_port)
            && self
                .protocol
                .as_ref()
                .is_none_or(|protocol| *protocol == record.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni_ebpf::abi::{Addr, Port};

    fn record() -> Record {
        Record::from(&abi::Event {
            kind: event_kind::DROP,
            reason: Reason::SourceAddress as u8,
            proto: 6,
            tcp_flags: 0b10010,
            src: Addr::v4([10, 0, 0, 1]),
            src_port: Port::new(1234),
            dst: Addr::v4([10, 0, 0, 2]),
            dst_port: Port::new(80),
            endpoint: 7,
            ..abi::Event::default()
        })
    }

    #[test]
    fn a_drop_is_told_with_its_reason() {
        let text = record().to_string();
        for part in [
            "drop",
            "tcp",
            "10.0.0.1:1234 -> 10.0.0.2:80",
            "source_address",
            "[SYN,ACK]",
            "endpoint 7",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(record().dialled, None);
    }

    #[test]
    fn filters_agree_in_everything_that_is_set() {
        assert!(Filter::default().wants(&record()));
        let address = Some("10.0.0.2".parse().unwrap());
        let filter = Filter {
            kinds: vec!["drop".into()],
            address,
            port: Some(80),
            ..Filter::default()
        };
        assert!(filter.wants(&record()));
        for other in [
            Filter {
                kinds: vec!["new".into()],
                ..filter.clone()
            },
            Filter {
                reasons: vec!["martian".into()],
                ..filter.clone()
            },
            Filter {
                endpoint: Some(8),
                ..filter.clone()
            },
            Filter {
                port: Some(81),
                ..filter.clone()
            },
            Filter {
                protocol: Some("udp".into()),
                ..filter.clone()
            },
            Filter {
                address: Some("10.0.0.3".parse().unwrap()),
                ..filter
            },
        ] {
            assert!(!other.wants(&record()), "{other:?}");
        }
    }

    #[test]
    fn protocols_have_names() {
        for number in 0..=255 {
            assert_eq!(protocol_number(&protocol_name(number)), Ok(number));
        }
        assert!(protocol_number("tpc").unwrap_err().contains("use tcp"));
    }
}
