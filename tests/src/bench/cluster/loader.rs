//! Puts objects into the API server, many at a time.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, future::try_join_all, stream};
use http::{Method, Request, header::CONTENT_TYPE};
use kube::{Client, Config, config::Kubeconfig};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::{
    change::Change,
    objects::{Object, PODS},
};
use crate::netns::Namespace;

/// More do not make it quicker on few processors.
pub(super) const AT_A_TIME: usize = 48;

/// Works inside a namespace that reaches the API server.
pub struct Loader {
    pub(super) inside: Namespace,
    kubeconfig: PathBuf,
}

impl Loader {
    pub fn new(inside: &Namespace, kubeconfig: &Path) -> Result<Self> {
        Ok(Self {
            inside: inside.duplicate()?,
            kubeconfig: kubeconfig.to_owned(),
        })
    }

    /// Creates objects, with their status.
    pub fn create(&self, what: &str, objects: Vec<Object>) -> Result<()> {
        let (begin, number) = (Instant::now(), objects.len());
        self.run(async move |client| {
            stream::iter(objects)
                .map(|object| create(client.clone(), object))
                .buffer_unordered(AT_A_TIME)
                .try_for_each(async |()| Ok(()))
                .await
        })
        .with_context(|| format!("create {what}"))?;
        eprintln!("{number} {what} in {:.0} s", begin.elapsed().as_secs_f64());
        Ok(())
    }

    /// For changes one after the other.
    pub fn editor(self) -> Result<Editor> {
        let runtime = runtime()?;
        let client = self.inside.run(|| runtime.block_on(client(&self.kubeconfig)))?;
        Ok(Editor {
            inside: self.inside,
            runtime,
            client,
        })
    }

    fn run(&self, work: impl AsyncFnOnce(Client) -> Result<()> + Send) -> Result<()> {
        self.inside
            .run(|| runtime()?.block_on(async { work(client(&self.kubeconfig).await?).await }))
    }

    /// How long the server takes to send all objects at these paths, at the same time, to somebody who does not look at them.
    pub fn list(&self, paths: &[&str]) -> Result<Duration> {
        let mut took = Duration::ZERO;
        self.run(async |client| {
            let begin = Instant::now();
            let list = async |path: &&str| {
                // From the server's memory, as all do who begin to watch.
                let path = format!("{path}?resourceVersion=0");
                client.request_text(Request::get(path).body(Vec::new())?).await?;
                anyhow::Ok(())
            };
            try_join_all(paths.iter().map(list)).await?;
            took = begin.elapsed();
            Ok(())
        })?;
        Ok(took)
    }

    /// Makes changes until it is stopped, those of pods at a steady rate and the others with them.
    pub fn churn(
        self,
        changes: impl Iterator<Item = Change> + Send + 'static,
        pods_per_second: u32,
    ) -> Churn {
        let stop = Arc::<AtomicBool>::default();
        let changed = Arc::<AtomicUsize>::default();
        let (ended, count) = (Arc::clone(&stop), Arc::clone(&changed));
        let thread = thread::spawn(move || {
            self.run(async move |client| {
                let mut tick = tokio::time::interval(Duration::from_secs(1) / pods_per_second);
                for change in changes {
                    if ended.load(Ordering::Relaxed) {
                        break;
                    }
                    let of_pod = change.path.starts_with(PODS);
                    if of_pod {
                        tick.tick().await;
                    }
                    change.make(&client).await?;
                    count.fetch_add(of_pod.into(), Ordering::Relaxed);
                }
                Ok(())
            })
        });
        Churn {
            stop,
            changed,
            thread,
        }
    }
}

pub(super) fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// Keeps its connection.
pub struct Editor {
    inside: Namespace,
    runtime: Runtime,
    client: Client,
}

impl Editor {
    /// Merges into the object at this path.
    pub fn patch(&self, path: &str, change: &Value) -> Result<()> {
        self.make(&Change::merge(path.to_owned(), change.clone()))
    }

    pub fn make(&self, change: &Change) -> Result<()> {
        self.inside
            .run(|| self.runtime.block_on(change.make(&self.client)))
    }
}

/// Pods that change.
pub struct Churn {
    stop: Arc<AtomicBool>,
    changed: Arc<AtomicUsize>,
    thread: JoinHandle<Result<()>>,
}

impl Churn {
    pub fn changed(&self) -> usize {
        self.changed.load(Ordering::Relaxed)
    }

    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    // Another library may have chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config =
        Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn create(client: Client, object: Object) -> Result<()> {
    for change in Change::create(&object) {
        change.make(&client).await?;
    }
    Ok(())
}

/// A server that is overtaxed asks for patience, and may have done what it says that it could not.
pub(super) async fn send(client: &Client, method: Method, path: &str, body: &Value) -> Result<()> {
    const ATTEMPTS: u32 = 6;
    let mut attempt = 1;
    loop {
        let error = match client.request::<Value>(request(&method, path, body)?).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let code = match &error {
            kube::Error::Api(status) => status.code,
            _ => 0,
        };
        match code {
            409 if attempt > 1 => return Ok(()),
            404 if attempt > 1 && method == Method::DELETE => return Ok(()),
            429 | 500.. if attempt < ATTEMPTS => tokio::time::sleep(Duration::from_secs(1) * attempt).await,
            _ => return Err(error).with_context(|| path.to_owned()),
        }
        attempt += 1;
    }
}

fn request(method: &Method, path: &str, body: &Value) -> Result<Request<Vec<u8>>> {
    let kind = if method == Method::PATCH {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    Ok(Request::builder()
        .method(method)
        .uri(path)
        .header(CONTENT_TYPE, kind)
        .body(body.to_string().into_bytes())?)
}
