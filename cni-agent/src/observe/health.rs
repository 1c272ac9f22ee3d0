//! Health check node ports: what load balancers ask a node about a Service that is only served where its endpoints are; and
//! the health of the proxy itself, in the shape that kube-proxy gives it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue, SERVER},
};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use super::{http::serve_each, ports::Ports};
use crate::{kernel::kube_proxy::OURS, model::NamespacedName};

/// Connections at one time and port.
const CONNECTIONS: usize = 16;
/// The proxy does not keep up if something that it knows is not in the kernel for so long.
const STALE: Duration = Duration::from_secs(60);

/// What there is to answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// Where questions are answered: those of NodePorts.
    pub addresses: Vec<IpAddr>,
    pub services: BTreeMap<u16, ServiceHealth>,
    /// Since when something that is known is not in the kernel. `None`: everything is.
    pub behind_since: Option<Instant>,
    /// When everything was there last, if it is not now.
    pub updated: Option<SystemTime>,
    pub turn: Turn,
    /// Services are served here at all, and have been written once.
    pub begun: bool,
    /// This node is being deleted: new connections had better go elsewhere.
    pub leaving: bool,
}

/// Since when the owner of the state has been at what it does now: who waits for the kernel has not said that it is behind.
#[derive(Clone, Debug, Default)]
pub struct Turn(Arc<Mutex<Option<Instant>>>);

impl Turn {
    pub fn begin(&self) {
        self.set(Some(Instant::now()));
    }

    pub fn end(&self) {
        self.set(None);
    }

    /// `None`: it waits for something to do.
    pub fn began(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, began: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = began;
    }
}

/// The same owner's.
impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceHealth {
    pub name: NamespacedName,
    /// Of each family that the Service has: `[IPv4, IPv6]`.
    pub local_ready: [Option<usize>; 2],
}

impl ServiceHealth {
    fn ready_by(&self, v4: bool) -> Option<usize> {
        let [first, second] = self.local_ready;
        if v4 { first } else { second }
    }
}

impl Health {
    /// What is known is in the kernel, or has not been outside of it for long.
    pub fn is_alive(&self, now: Instant) -> bool {
        let mut since = self.behind_since.into_iter().chain(self.turn.began());
        self.begun && since.all(|since| now.saturating_duration_since(since) < STALE)
    }

    /// The same, and it is worth while to send anything here.
    pub fn is_healthy(&self, now: Instant) -> bool {
        self.is_alive(now) && !self.leaving
    }
}

/// Serves all ports that there are to serve, as they come and go, until nobody tells any more.
pub async fn serve(mut health: watch::Receiver<Arc<Health>>, ports: Ports) {
    let mut listeners: BTreeMap<SocketAddr, JoinHandle<()>> = BTreeMap::new();
    loop {
        let wanted: Vec<SocketAddr> = {
            let now = health.borrow_and_update();
            let ports = now.services.iter();
            ports
                .flat_map(|(port, service)| {
                    let ips = now.addresses.iter();
                    ips.filter(|ip| service.ready_by(ip.is_ipv4()).is_some())
                        .map(|ip| SocketAddr::new(*ip, *port))
                })
                .collect()
        };
        listeners.retain(|address, task| {
            let keep = wanted.contains(address);
            if !keep {
                task.abort();
            }
            keep
        });
        for address in wanted {
            listeners
                .entry(address)
                .or_insert_with(|| tokio::spawn(listen(address, health.clone(), ports.clone())));
        }
        if health.changed().await.is_err() {
            listeners.values().for_each(JoinHandle::abort);
            return;
        }
    }
}

async fn listen(address: SocketAddr, health: watch::Receiver<Arc<Health>>, ports: Ports) {
    let listener = ports
        .listen(
            address,
            "free it, or give the Service another healthCheckNodePort",
        )
        .await;
    let page = move |_: &Request<Incoming>| service_page(&health.borrow(), address, Instant::now());
    answer_all(listener, page).await;
}

/// The proxy's own health, at `/healthz` and `/livez`.
pub async fn serve_proxy(address: SocketAddr, health: watch::Receiver<Arc<Health>>, ports: Ports) {
    let listener = ports
        .listen(address, "end kube-proxy if it is that, or set services.health")
        .await;
    let page = move |request: &Request<Incoming>| {
        let now = (Instant::now(), SystemTime::now());
        proxy_page(&health.borrow(), request.uri().path(), now)
    };
    answer_all(listener, page).await;
}

async fn answer_all(
    listener: TcpListener,
    page: impl Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
) {
    let page = move |request| std::future::ready(page(&request));
    serve_each(listener, CONNECTIONS, "a health check", page).await;
}

fn service_page(health: &Health, asked: SocketAddr, now: Instant) -> Response<Full<Bytes>> {
    let Some(service) = health.services.get(&asked.port()) else {
        return page(StatusCode::SERVICE_UNAVAILABLE, &json!({}));
    };
    let local_ready = service.ready_by(asked.is_ipv4()).unwrap_or(0);
    // Where the node is about to go, its endpoints serve as long as they are there.
    let healthy = health.is_alive(now);
    let status = if local_ready > 0 && healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut response = page(
        status,
        &json!({
            "service": { "namespace": &*service.name.namespace, "name": service.name.name },
            "localEndpoints": local_ready,
            "serviceProxyHealthy": healthy,
        }),
    );
    let weight = HeaderValue::from(local_ready);
    response
        .headers_mut()
        .insert("x-load-balancing-endpoint-weight", weight);
    response
}

/// `now` by both clocks. As kube-proxy has it, what is healthy was updated at this moment, and whether the node is worth
/// sending anything to is no question of its life.
fn proxy_page(health: &Health, path: &str, now: (Instant, SystemTime)) -> Response<Full<Bytes>> {
    let (good, eligible) = match path {
        "/healthz" => (health.is_healthy(now.0), Some(!health.leaving)),
        "/livez" => (health.is_alive(now.0), None),
        _ => return page(StatusCode::NOT_FOUND, &json!({ "paths": ["/healthz", "/livez"] })),
    };
    let status = if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let time = |time: SystemTime| Timestamp::try_from(time).ok().map(|time| time.to_string());
    let waits = || {
        now.1
            .checked_sub(now.0.saturating_duration_since(health.turn.began()?))
    };
    let updated = if good {
        Some(now.1)
    } else {
        health.updated.or_else(waits)
    };
    let mut body = json!({
        "lastUpdated": updated.and_then(time), "currentTime": time(now.1), "healthy": good,
    });
    if let Some(eligible) = eligible {
        body["nodeEligible"] = json!(eligible);
    }
    page(status, &body)
}

fn page(status: StatusCode, body: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    // Or we would take ourselves for the proxy whose questions these are.
    headers.insert(SERVER, HeaderValue::from_static(OURS));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const PORT: u16 = 31000;

    fn asked(v4: bool) -> SocketAddr {
        let ip: IpAddr = if v4 {
            [192, 0, 2, 1].into()
        } else {
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()
        };
        SocketAddr::new(ip, PORT)
    }

    fn health(local_ready: usize) -> Health {
        let service = ServiceHealth {
            name: NamespacedName {
                namespace: "a".into(),
                name: "web".into(),
            },
            local_ready: [Some(local_ready), Some(0)],
        };
        Health {
            services: BTreeMap::from([(PORT, service)]),
            begun: true,
            ..Health::default()
        }
    }

    fn status(health: &Health) -> u16 {
        service_page(health, asked(true), Instant::now())
            .status()
            .as_u16()
    }

    fn behind(seconds: u64) -> Health {
        Health {
            behind_since: Instant::now().checked_sub(Duration::from_secs(seconds)),
            ..health(1)
        }
    }

    #[test]
    fn svc_45_good_is_who_has_ready_endpoints_and_a_healthy_proxy() {
        assert_eq!(status(&health(2)), 200);
        assert_eq!(status(&health(0)), 503);
        assert_eq!(status(&behind(600)), 503);
        assert_eq!(status(&behind(1)), 200);
        let leaving = Health {
            leaving: true,
            ..health(1)
        };
        assert_eq!(status(&leaving), 200, "nobody else may have any");
        let by_v6 = service_page(&health(2), asked(false), Instant::now());
        assert_eq!(by_v6.status().as_u16(), 503, "none of that family");
    }

    #[tokio::test]
    async fn svc_46_the_body_and_the_headers_are_those_that_load_balancers_know() {
        let response = service_page(&health(3), asked(true), Instant::now());
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert_eq!(response.headers()["x-load-balancing-endpoint-weight"], "3");
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let wanted = json!({
            "service": { "namespace": "a", "name": "web" }, "localEndpoints": 3, "serviceProxyHealthy": true,
        });
        assert_eq!(body, wanted);
    }

    #[test]
    fn svc_48_healthz_fails_on_a_stale_proxy_and_a_leaving_node_and_livez_on_the_first_alone() {
        let leaving = Health {
            leaving: true,
            ..health(1)
        };
        let stuck = health(1);
        stuck.turn.set(behind(600).behind_since);
        for (health, path, code) in [
            (&health(1), "/healthz", 200),
            (&health(1), "/livez", 200),
            (&behind(600), "/healthz", 503),
            (&behind(600), "/livez", 503),
            (&leaving, "/healthz", 503),
            (&leaving, "/livez", 200),
            (&Health::default(), "/livez", 503),
            (&health(1), "/else", 404),
            (&stuck, "/healthz", 503),
            (&stuck, "/livez", 503),
        ] {
            let page = proxy_page(health, path, (Instant::now(), SystemTime::now()));
            assert_eq!(page.status().as_u16(), code, "{path}");
        }
    }

    #[tokio::test]
    async fn svc_48_the_proxys_health_has_the_shape_of_kube_proxys() {
        let now = (
            Instant::now(),
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        );
        let body = async |health: &Health, path: &str| -> serde_json::Value {
            let page = proxy_page(health, path, now).into_body();
            serde_json::from_slice(&page.collect().await.unwrap().to_bytes()).unwrap()
        };
        let time = "2027-01-15T08:00:00Z";
        let good = json!({ "lastUpdated": time, "currentTime": time, "healthy": true, "nodeEligible": true });
        assert_eq!(body(&health(1), "/healthz").await, good);
        let behind = Health {
            updated: Some(now.1 - Duration::from_secs(600)),
            ..behind(600)
        };
        let stale = json!({ "lastUpdated": "2027-01-15T07:50:00Z", "currentTime": time, "healthy": false });
        assert_eq!(body(&behind, "/livez").await, stale);
        let stuck = health(1);
        stuck.turn.set(now.0.checked_sub(Duration::from_secs(600)));
        assert_eq!(body(&stuck, "/livez").await, stale);
        assert_eq!(
            body(&Health::default(), "/livez").await["lastUpdated"],
            serde_json::Value::Null
        );
    }
}
