//! A front end for API servers that has lost its servers, and says of everything that it is not there.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use cni_tests::lab::Lab;

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
    pub(crate) fn start(lab: &Lab, ip: IpAddr) -> Self {
        let at = SocketAddr::new(ip, 8080);
        let listener = lab.fabric.run(|| TcpListener::bind(at)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::<AtomicBool>::default();
        let ended = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    // Who asks may be gone already.
                    Ok((stream, _)) => _ = answer(stream),
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self {
            url: format!("http://{at}"),
            stop,
            thread: Some(thread),
        }
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut asked = Vec::new();
    let mut part = [0; 4096];
    while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            length => asked.extend_from_slice(&part[..length]),
        }
    }
    stream.write_all(ANSWER)
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
