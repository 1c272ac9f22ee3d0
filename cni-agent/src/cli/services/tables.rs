//! What people are shown of Services.

use std::net::SocketAddr;

use super::{BackRow, Connections, back_rows, of};
use crate::{
    cli::table,
    compile::service::HintsUsed,
    config::Algorithm,
    services::{Answer, Clients, Description, Front},
};

/// Their frontends and what is wrong with them; of those that have been named also what is behind these, and who may use
/// them.
pub(super) fn services(services: &[Description], named: bool, connections: &Connections) -> String {
    let header = [
        "SERVICE",
        "FRONTEND",
        "PROTOCOL",
        "CLIENTS",
        "ANSWER",
        "BACKENDS",
        "ALGORITHM",
        "MODE",
        "HINTS",
        "AFFINITY",
        "CONNECTIONS",
        "SOCKETS",
        "OPENED",
    ];
    let rows: Vec<Vec<String>> = services
        .iter()
        .flat_map(|service| {
            let fronts = service.frontends.iter();
            fronts.map(|front| cells(service, front, connections))
        })
        .collect();
    let mut text = table::text(&header, &rows);
    let mut lines: Vec<String> = Vec::new();
    if named {
        let rows = back_rows(services, connections);
        if !rows.is_empty() {
            text.push('\n');
            text.push_str(&backends(&rows));
        }
        lines.extend(services.iter().filter_map(clients));
        lines.extend(services.iter().filter_map(health_check));
        if !lines.is_empty() {
            text.push('\n');
        }
    }
    lines.extend(services.iter().flat_map(|service| service.problems.clone()));
    lines.extend(services.iter().filter_map(why_unserved));
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

pub(super) fn backends(rows: &[BackRow]) -> String {
    let header = [
        "NUMBER",
        "BACKEND",
        "PROTOCOL",
        "STATE",
        "WHERE",
        "CONNECTIONS",
        "SOCKETS",
        "SERVICES",
    ];
    let cells: Vec<Vec<String>> = rows.iter().map(back_cells).collect();
    table::text(&header, &cells)
}

pub(super) fn why_unserved(service: &Description) -> Option<String> {
    let why = service.unserved.as_ref()?;
    Some(format!("Service {} is not served here: {why}", service.name))
}

/// Who alone may use its load balancer's addresses.
fn clients(service: &Description) -> Option<String> {
    let ranges: Vec<String> = service.source_ranges.iter().map(ToString::to_string).collect();
    (!ranges.is_empty()).then(|| {
        format!(
            "Service {}: its load balancer's addresses are open to {} alone (spec.loadBalancerSourceRanges)",
            service.name,
            ranges.join(", ")
        )
    })
}

/// What load balancers are told about this node.
fn health_check(service: &Description) -> Option<String> {
    let port = service.health_check_node_port?;
    let families = service.local_ready?.into_iter().zip(["IPv4", "IPv6"]);
    let counts: Vec<String> = families
        .filter_map(|(count, family)| Some(format!("{} of {family}", count?)))
        .collect();
    Some(format!(
        "Service {}: healthCheckNodePort {port} counts the ready endpoints of this node: {}",
        service.name,
        counts.join(", ")
    ))
}

fn cells(service: &Description, front: &Front, connections: &Connections) -> Vec<String> {
    vec![
        service.name.to_string(),
        SocketAddr::new(front.address, front.port).to_string(),
        front.protocol.to_string(),
        match front.clients {
            Clients::Inside => "inside",
            Clients::Outside => "outside",
        }
        .to_owned(),
        match front.answer {
            Answer::Forward => "forward",
            Answer::Refuse => "refuse",
            Answer::Drop => "drop",
        }
        .to_owned(),
        front.backends.len().to_string(),
        match front.algorithm {
            Algorithm::Random => "random".to_owned(),
            Algorithm::Maglev => format!("maglev {}", front.table_size),
        },
        match (front.direct_return, front.masquerade) {
            (true, _) => "dsr",
            (false, true) => "snat",
            (false, false) => "-",
        }
        .to_owned(),
        match front.hints {
            HintsUsed::Anywhere => "-",
            HintsUsed::SameZone => "zone",
            HintsUsed::SameNode => "node",
        }
        .to_owned(),
        front
            .affinity_seconds
            .map_or_else(|| "-".to_owned(), |seconds| format!("{seconds}s")),
        of(&connections.of_service, front.number).to_string(),
        of(&connections.sockets_of_service, front.number).to_string(),
        of(&connections.opened, front.number).to_string(),
    ]
}

fn back_cells(row: &BackRow) -> Vec<String> {
    let backend = &row.backend;
    vec![
        backend.number.to_string(),
        SocketAddr::new(backend.address, backend.port).to_string(),
        backend.protocol.to_string(),
        if backend.terminating {
            "terminating"
        } else {
            "ready"
        }
        .to_owned(),
        if backend.local { "here" } else { "elsewhere" }.to_owned(),
        row.connections.to_string(),
        row.sockets.to_string(),
        row.services.join(","),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{NamespacedName, Protocol},
        services::Back,
    };

    fn name() -> NamespacedName {
        NamespacedName {
            namespace: "a".into(),
            name: "web".into(),
        }
    }

    fn back(number: u32, terminating: bool) -> Back {
        Back {
            number,
            address: [10, 1, 0, number as u8].into(),
            port: 8080,
            protocol: Protocol::Tcp,
            local: !terminating,
            terminating,
        }
    }

    fn web() -> Description {
        Description {
            frontends: vec![Front {
                address: [10, 96, 0, 1].into(),
                port: 80,
                protocol: Protocol::Tcp,
                clients: Clients::Inside,
                answer: Answer::Forward,
                number: 7,
                backends: vec![8],
                hints: HintsUsed::Anywhere,
                algorithm: Algorithm::Random,
                table_size: 0,
                affinity_seconds: None,
                masquerade: false,
                direct_return: false,
                restricted: true,
            }],
            backends: vec![back(8, false), back(9, true)],
            health_check_node_port: Some(31007),
            local_ready: Some([Some(1), None]),
            source_ranges: vec!["10.0.0.0/8".parse().unwrap(), "192.0.2.0/24".parse().unwrap()],
            problems: vec!["Service a/web: bad".to_owned()],
            unserved: None,
            ..Description::unserved(&name(), String::new())
        }
    }

    const FRONTENDS: &str = "\
SERVICE  FRONTEND      PROTOCOL  CLIENTS  ANSWER   BACKENDS  ALGORITHM  MODE  HINTS  AFFINITY  CONNECTIONS  SOCKETS  OPENED
a/web    10.96.0.1:80  TCP       inside   forward  1         random     -     -      -         3            0        4
";
    const BACKENDS: &str = "\
NUMBER  BACKEND        PROTOCOL  STATE        WHERE      CONNECTIONS  SOCKETS  SERVICES
8       10.1.0.8:8080  TCP       ready        here       2            0        a/web
9       10.1.0.9:8080  TCP       terminating  elsewhere  1            5        a/web
";

    fn connections() -> Connections {
        Connections {
            of_service: [(7, 3)].into(),
            of_backend: [(8, 2), (9, 1)].into(),
            sockets_of_backend: [(9, 5)].into(),
            opened: [(7, 4)].into(),
            ..Connections::default()
        }
    }

    #[test]
    fn whoever_names_a_service_is_shown_what_is_behind_it_and_who_may_use_it() {
        let text = services(&[web()], true, &connections());
        let more = "
Service a/web: its load balancer's addresses are open to 10.0.0.0/8, 192.0.2.0/24 alone (spec.loadBalancerSourceRanges)
Service a/web: healthCheckNodePort 31007 counts the ready endpoints of this node: 1 of IPv4
Service a/web: bad
";
        assert_eq!(text, format!("{FRONTENDS}\n{BACKENDS}{more}"));
        assert_eq!(backends(&back_rows(&[web()], &connections())), BACKENDS);
    }

    #[test]
    fn of_all_services_frontends_and_problems_are_shown() {
        let unread = NamespacedName {
            name: "unread".to_owned(),
            ..name()
        };
        let unread = Description::unserved(&unread, "it cannot be read: bad".to_owned());
        let text = services(&[web(), unread], false, &connections());
        let lines = "Service a/web: bad\nService a/unread is not served here: it cannot be read: bad\n";
        assert_eq!(text, format!("{FRONTENDS}{lines}"));
    }
}
