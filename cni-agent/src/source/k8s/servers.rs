//! The API servers, and the way to the one that answers.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{Request, Response, StatusCode, Uri};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client,
    client::{Body, ConfigExt},
};
use tower::{BoxError, ServiceBuilder};

use super::access::{Access, AccessError};

const CONNECT: Duration = Duration::from_secs(5);
/// Until the head of an answer. The server itself gives up after a minute.
const ANSWER: Duration = Duration::from_secs(65);
/// A server that lost its power says nothing on a watch; the kernel asks.
const KEEPALIVE: Duration = Duration::from_secs(10);
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// A server did not answer, or only to say that it cannot.
#[derive(Debug, thiserror::Error)]
#[error("{url}: {reason}")]
pub(super) struct Unanswered {
    pub(super) url: String,
    pub(super) reason: String,
    /// It answered, but its certificate is not one that we trust.
    pub(super) untrusted: bool,
}

/// All servers that are known.
#[derive(Debug)]
pub(super) struct Servers {
    access: Access,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    servers: Vec<Server>,
    /// The one that answered last, or is to be tried next.
    current: usize,
}

#[derive(Clone)]
struct Server {
    url: Uri,
    /// The cluster named it; nobody configured it.
    learned: bool,
    client: Client,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.url.fmt(f)
    }
}

impl Servers {
    /// `learned`: those that the cluster itself named when it was last heard.
    pub(super) fn new(access: Access, learned: &[Uri]) -> Result<Arc<Self>, AccessError> {
        let servers = Self {
            access,
            known: Mutex::default(),
        };
        servers.learn(learned)?;
        Ok(Arc::new(servers))
    }

    /// Takes note of the servers that the cluster names. The one in use stays in use.
    pub(super) fn learn(&self, learned: &[Uri]) -> Result<(), AccessError> {
        let Access {
            configured, service, ..
        } = &self.access;
        let configured = configured.iter().map(|url| (url, false));
        let learned = learned.iter().map(|url| (url, true));
        let service = service.iter().map(|url| (url, false));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let in_use = known.servers.get(known.current).map(|server| server.url.clone());
        let mut servers: Vec<Server> = Vec::new();
        for (url, learned) in configured.chain(learned).chain(service) {
            if servers.iter().any(|server| server.url == *url) {
                continue;
            }
            let before = known.servers.iter().find(|server| server.url == *url);
            servers.push(match before {
                Some(server) => server.clone(),
                None => Server {
                    url: url.clone(),
                    learned,
                    client: connect(&self.access.to(url, learned))?,
                },
            });
        }
        let current = servers
            .iter()
            .position(|server| Some(&server.url) == in_use.as_ref());
        *known = Known {
            servers,
            current: current.unwrap_or_default(),
        };
        Ok(())
    }

    /// The servers in the order in which they are to be tried now.
    fn candidates(&self) -> Vec<Server> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut servers = known.servers.clone();
        servers.rotate_left(known.current);
        servers
    }

    fn answered(&self, url: &Uri) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = known.servers.iter().position(|server| server.url == *url)
            && place != known.current
        {
            tracing::info!(server = %url, "another API server answers");
            known.current = place;
        }
    }

    /// Our credentials are not accepted: those in the files may be others by now. A client looks there once a minute only, and
    /// whoever was refused pauses for as long before he tries again.
    fn read_credentials_again(&self, refused: &Server) {
        match connect(&self.access.to(&refused.url, refused.learned)) {
            Ok(client) => {
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                let mut servers = known.servers.iter_mut();
                if let Some(server) = servers.find(|server| server.url == refused.url) {
                    server.client = client;
                }
            }
            Err(error) => tracing::debug!(server = %refused.url, %error, "no new credentials"),
        }
    }

    /// Asks one server after the other until one answers.
    async fn ask(&self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let (head, body) = request.into_parts();
        let mut failures = Vec::new();
        let mut untrusted = false;
        let candidates = self.candidates();
        let last = candidates.len().saturating_sub(1);
        for (place, server) in candidates.into_iter().enumerate() {
            let body = body.try_clone().ok_or("the request cannot be sent twice")?;
            let request = Request::from_parts(head.clone(), body);
            let answer = tokio::time::timeout(ANSWER, server.client.send(request)).await;
            match answer {
                Ok(Ok(response)) if place == last || !is_out_of_service(response.status()) => {
                    if response.status() == StatusCode::UNAUTHORIZED {
                        self.read_credentials_again(&server);
                    }
                    self.answered(&server.url);
                    return Ok(response);
                }
                Ok(Ok(response)) => failures.push((server.url, response.status().to_string())),
                Ok(Err(error)) => {
                    untrusted |= is_untrusted(&error);
                    failures.push((server.url, root_cause(&error)));
                }
                Err(_) => failures.push((server.url, "no answer".to_owned())),
            }
        }
        let urls: Vec<String> = failures
            .iter()
            .map(|(url, _)| url.to_string().trim_end_matches('/').to_owned())
            .collect();
        let mut reasons: Vec<String> = failures.into_iter().map(|(_, reason)| reason).collect();
        reasons.dedup();
        Err(Unanswered {
            url: urls.join(", "),
            reason: reasons.join(", "),
            untrusted,
        }
        .into())
    }

    /// A client that goes to whichever server answers. `heard` is told of every request that succeeds.
    pub(super) fn client(self: &Arc<Self>, heard: impl Fn() + Clone + Send + 'static) -> Client {
        let servers = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let (servers, heard) = (Arc::clone(&servers), heard.clone());
            async move {
                let response = servers.ask(request).await?;
                if response.status().is_success() {
                    heard();
                }
                Ok::<_, BoxError>(response)
            }
        });
        Client::new(service, "default")
    }
}

fn is_out_of_service(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

fn connect(config: &kube::Config) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_keepalive_retries(Some(2));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let https = config.rustls_https_connector_with_connector(tcp)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(HyperClient::builder(TokioExecutor::new()).build(https));
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// The errors that led to this one, the outermost first.
fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// An I/O error says of an error that it wraps only what that one was caused by: it takes a look inside.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let inside = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    error
        .downcast_ref()
        .or_else(|| tls_error(inside?))
        .or_else(|| tls_error(error.source()?))
}

fn is_untrusted(error: &kube::Error) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidCertificate(_)))
}

fn root_cause(error: &kube::Error) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}
