//! Whether a node has endpoints of a Service, as its proxy says at the health check port.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;

const PATIENCE: Duration = Duration::from_millis(500);

/// Whoever does not answer does not serve.
pub(super) fn serves(node: IpAddr, port: u16) -> bool {
    ask(SocketAddr::new(node, port)).unwrap_or(false)
}

fn ask(to: SocketAddr) -> Result<bool> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // In one piece: who answers the first of several and closes resets the connection.
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut start = [0; 12];
    stream.read_exact(&mut start)?;
    Ok(start.ends_with(b" 200"))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

    use super::*;

    #[test]
    fn who_says_200_serves_and_nobody_else() {
        for (answer, expected) in [("200 OK", true), ("503 Service Unavailable", false), ("", false)] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = thread::spawn(move || {
                let (mut client, _) = listener.accept().unwrap();
                assert!(client.read(&mut [0; 256]).unwrap() > 0);
                let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                client.write_all(answer.as_bytes()).unwrap();
            });
            assert_eq!(serves(Ipv4Addr::LOCALHOST.into(), port), expected, "{answer}");
            server.join().unwrap();
        }
    }
}
