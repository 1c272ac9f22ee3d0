//! A front end for API servers that has lost its servers, and says of everything that it is not there.

use std::{
    io::{Error, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use cni_tests::{
    crew::Crew,
    lab::{ControlPlane, Lab},
};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// Word for word what an API server says of a kind that it has not.
const ANSWER: &[u8] =
    b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 19\r\n\
                        Connection: close\r\n\r\n404 page not found\n";

/// It ends when it is dropped.
pub(crate) struct FrontEnd {
    pub(crate) url: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FrontEnd {
    /// With the certificate of the servers that it has lost.
    pub(crate) fn start(lab: &Lab, control: &ControlPlane, ip: IpAddr) -> Self {
        let tls = Arc::new(identity(control));
        let at = SocketAddr::new(ip, 8080);
        let listener = lab.fabric.run(|| TcpListener::bind(at)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::<AtomicBool>::default();
        let ended = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut crew = Crew::default();
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let tls = Arc::clone(&tls);
                        // Who asks may be gone already.
                        crew.spawn(move || _ = answer(stream, tls));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self {
            url: format!("https://{at}"),
            stop,
            thread: Some(thread),
        }
    }
}

fn identity(control: &ControlPlane) -> ServerConfig {
    let file = |name: &str| control.folder().join(name);
    let certificate = CertificateDer::from_pem_file(file("apiserver.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("apiserver.key")).unwrap();
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap()
}

fn answer(stream: TcpStream, tls: Arc<ServerConfig>) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let connection = ServerConnection::new(tls).map_err(Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let mut asked = Vec::new();
    let mut part = [0; 4096];
    while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            length => asked.extend_from_slice(&part[..length]),
        }
    }
    stream.write_all(ANSWER)?;
    stream.conn.send_close_notify();
    stream.flush()
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
