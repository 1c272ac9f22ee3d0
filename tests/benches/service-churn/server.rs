//! A server of TCP and UDP that sends back what it gets, and sleeps until there is something: 20 of them must cost nothing.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::Result;
use cni_tests::netns::Namespace;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Between looks at whether it is to end.
const LOOK: u16 = 100;

pub(crate) struct Server {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(inside: &Namespace, ip: IpAddr, port: u16) -> Result<Self> {
        let at = SocketAddr::new(ip, port);
        let (listener, socket) =
            inside.run(|| Ok::<_, std::io::Error>((TcpListener::bind(at)?, UdpSocket::bind(at)?)))?;
        let ended = Arc::<AtomicBool>::default();
        let (streams, datagrams) = (Arc::clone(&ended), Arc::clone(&ended));
        let threads = vec![
            thread::spawn(move || {
                while wait(&listener, &streams) {
                    if let Ok((stream, _)) = listener.accept() {
                        let ended = Arc::clone(&streams);
                        thread::spawn(move || echo(stream, &ended));
                    }
                }
            }),
            thread::spawn(move || {
                let mut bytes = [0; 64];
                while wait(&socket, &datagrams) {
                    if let Ok((length, from)) = socket.recv_from(&mut bytes) {
                        let _ = socket.send_to(&bytes[..length], from);
                    }
                }
            }),
        ];
        Ok(Self { ended, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Until something comes; false at the end.
fn wait(on: &impl AsFd, ended: &AtomicBool) -> bool {
    while !ended.load(Ordering::Relaxed) {
        let mut events = [PollFd::new(on.as_fd(), PollFlags::POLLIN)];
        if poll(&mut events, PollTimeout::from(LOOK)).is_ok_and(|ready| ready > 0) {
            return true;
        }
    }
    false
}

fn echo(mut stream: TcpStream, ended: &AtomicBool) {
    let _ = stream.set_nodelay(true);
    let mut bytes = [0; 64];
    while wait(&stream, ended) {
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(length) if stream.write_all(&bytes[..length]).is_err() => return,
            Ok(_) => {}
        }
    }
}
