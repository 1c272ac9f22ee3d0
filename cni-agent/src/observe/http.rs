//! `/healthz`, `/readyz` and `/metrics`; and what is asked of kube-proxy where it gives its metrics.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::histogram::Histogram;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};

use super::{
    admin::Inquiry,
    counters,
    metrics::{Opened, Snapshot, render},
    ports::Ports,
    tables::Cache,
};
use crate::{kernel::Pins, status::Status};

/// What the pages are made from.
#[derive(Clone, Debug)]
pub struct Pages {
    pub status: watch::Receiver<Arc<Status>>,
    pub pins: Pins,
    pub fills: Arc<Cache>,
    pub latency: Histogram,
    pub services: mpsc::Sender<Inquiry>,
}

/// A client must have sent its request after this.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where others wait, after this.
const SHORT_PATIENCE: Duration = Duration::from_millis(100);
/// And must have read its answer after this.
const LONGEST: Duration = Duration::from_secs(60);

/// For the agent to say something.
const MOMENT: Duration = Duration::from_secs(1);

/// kube-proxy's are iptables, ipvs and nftables; whoever looks for what one of those does must not find it here.
const PROXY_MODE: &str = "ebpf";

/// Connections at one time: whoever opens more ends those that ask nothing or waits, and cannot exhaust the agent.
const CONNECTIONS: usize = 32;

/// Binds the address; the error names the setting.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        std::io::Error::new(
            error.kind(),
            format!("listen on {address}: {error}; set `http` to an address that is free"),
        )
    })
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, pages: Pages) {
    let page = move |request| {
        let pages = pages.clone();
        async move { answer(&request, &pages).await }
    };
    serve_each(listener, CONNECTIONS, "an HTTP connection", page).await;
}

/// What kube-proxy answers there, for those who ask every node: `/proxyMode`, `/healthz`, `/metrics` (ours).
pub async fn serve_as_proxy(address: SocketAddr, pages: Pages, ports: Ports) {
    let listener = ports
        .listen(address, "end kube-proxy if it is that, or set services.metrics")
        .await;
    let page = move |request| {
        let pages = pages.clone();
        async move { answer_as_proxy(&request, &pages).await }
    };
    serve_each(listener, CONNECTIONS, "a connection for the proxy", page).await;
}

/// Serves until it is dropped, and connections end with that; `most` of them at a time. Where there are so many, the one that
/// has asked nothing for the longest time gives way: whoever opens connections and is silent keeps nobody out. The logs call
/// each `what`.
pub(super) async fn serve_each<R: Future<Output = Response<Full<Bytes>>> + Send + 'static>(
    listener: TcpListener,
    most: usize,
    what: &'static str,
    page: impl Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
) {
    let mut connections = JoinSet::new();
    let mut silent: VecDeque<Silent> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "{what} could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        while connections.len() >= most {
            silent.retain(Silent::is_silent);
            let oldest = silent.front().map(|one| one.since + SHORT_PATIENCE);
            tokio::select! {
                _ = connections.join_next() => {}
                () = sleep_until(oldest.unwrap_or_else(Instant::now)), if oldest.is_some() => {
                    if let Some(oldest) = silent.pop_front().filter(Silent::is_silent) {
                        oldest.task.abort();
                        connections.join_next().await;
                    }
                }
            }
        }
        silent.retain(Silent::is_silent);
        let has_asked = Arc::new(AtomicBool::new(false));
        let (page, asks) = (page.clone(), Arc::clone(&has_asked));
        let answer = move |request| {
            asks.store(true, Ordering::Relaxed);
            page(request)
        };
        silent.push_back(Silent {
            task: connections.spawn(exchange(stream, what, answer)),
            since: Instant::now(),
            has_asked,
        });
    }
}

/// A connection that has asked nothing yet, as far as anybody has looked.
struct Silent {
    task: AbortHandle,
    since: Instant,
    has_asked: Arc<AtomicBool>,
}

impl Silent {
    fn is_silent(&self) -> bool {
        !self.task.is_finished() && !self.has_asked.load(Ordering::Relaxed)
    }
}

/// One request on a connection and its answer; the logs call it `what`.
async fn exchange<R: Future<Output = Response<Full<Bytes>>>>(
    stream: TcpStream,
    what: &str,
    answer: impl Fn(Request<Incoming>) -> R,
) {
    let service = service_fn(|request| {
        let response = answer(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(LONGEST, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "{what} ended early"),
        Err(_) => tracing::debug!("{what} took too long"),
    }
}

fn is_question(request: &Request<Incoming>) -> bool {
    request.method() == Method::GET || request.method() == Method::HEAD
}

fn no_question() -> Response<Full<Bytes>> {
    text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned())
}

async fn answer(request: &Request<Incoming>, pages: &Pages) -> Response<Full<Bytes>> {
    match request.uri().path() {
        _ if !is_question(request) => no_question(),
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => ready(&pages.status.borrow().clone()),
        "/metrics" => metrics(pages).await,
        _ => text(
            StatusCode::NOT_FOUND,
            "there is /healthz, /readyz and /metrics\n".to_owned(),
        ),
    }
}

async fn answer_as_proxy(request: &Request<Incoming>, pages: &Pages) -> Response<Full<Bytes>> {
    match request.uri().path() {
        _ if !is_question(request) => no_question(),
        "/healthz" => text(StatusCode::OK, "ok".to_owned()),
        "/proxyMode" => text(StatusCode::OK, PROXY_MODE.to_owned()),
        "/metrics" => metrics(pages).await,
        _ => text(
            StatusCode::NOT_FOUND,
            "there is /healthz, /proxyMode and /metrics\n".to_owned(),
        ),
    }
}

fn ready(status: &Status) -> Response<Full<Bytes>> {
    if status.ready {
        return text(StatusCode::OK, "ok\n".to_owned());
    }
    let waiting = status.sources.iter().filter(|(_, source)| !source.synced);
    let mut reasons: Vec<String> = waiting
        .map(|(source, _)| format!("{source} have not been read yet"))
        .collect();
    reasons.extend(status.problems.iter().cloned());
    if reasons.is_empty() {
        reasons.push("the agent is starting".to_owned());
    }
    text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
}

async fn metrics(pages: &Pages) -> Response<Full<Bytes>> {
    let (pins, fills) = (pages.pins.clone(), Arc::clone(&pages.fills));
    // Reading a large map takes a while: not on the threads that serve the plugin.
    let read = tokio::task::spawn_blocking(move || {
        let opened = counters::opened(&pins).unwrap_or_default();
        (
            counters::read(&pins).ok(),
            fills.read(&pins).unwrap_or_default(),
            opened,
        )
    });
    let (counters, fills, opened) = read.await.unwrap_or_default();
    let opened = by_set(&pages.services, &opened).await;
    let status = pages.status.borrow().clone();
    match render(&Snapshot {
        status: &status,
        counters: counters.as_ref(),
        fills: &fills,
        opened: &opened,
        latency: &pages.latency,
    }) {
        Ok(body) => {
            let mut response = text(StatusCode::OK, body);
            let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// Whose the counts are. An agent that has no time to say so within a moment leaves them out of this scrape.
async fn by_set(services: &mpsc::Sender<Inquiry>, counts: &BTreeMap<u32, u64>) -> Opened {
    let (reply, answer) = oneshot::channel();
    let numbers = counts.keys().copied().collect();
    let owners = async {
        let _ = services.send(Inquiry::Owners { numbers, reply }).await;
        answer.await.unwrap_or_default()
    };
    let owners = timeout(MOMENT, owners).await.unwrap_or_default().into_iter();
    owners
        .filter_map(|(number, owner)| Some((owner, *counts.get(&number)?)))
        .collect()
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn asked(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn whoever_is_silent_keeps_nobody_out_and_who_is_being_answered_is_left_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (go, wait) = watch::channel(false);
        let (enters, mut entered) = mpsc::channel(8);
        let first = Arc::new(AtomicBool::new(true));
        // The first one is answered when everything else is over.
        let page = move |_| {
            let (mut wait, is_first) = (wait.clone(), first.swap(false, Ordering::Relaxed));
            enters.try_send(()).unwrap();
            async move {
                if is_first {
                    wait.wait_for(|go| *go).await.unwrap();
                }
                text(StatusCode::OK, "here\n".to_owned())
            }
        };
        tokio::spawn(serve_each(listener, 3, "a test", page));
        let slow = tokio::spawn(asked(address));
        entered.recv().await.unwrap();
        let mut silent = Vec::new();
        for _ in 0..5 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let prompt = timeout(PATIENCE / 2, asked(address)).await;
        assert!(prompt.expect("nobody waits for the silent").ends_with("here\n"));
        go.send(true).unwrap();
        assert!(slow.await.unwrap().ends_with("here\n"));
    }
}
