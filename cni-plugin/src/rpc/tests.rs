use super::*;
use crate::{CniError, Mac, code};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{os::unix::net::UnixListener, path::Path, thread, time::Duration};

fn allocate() -> Allocate {
    Allocate {
        network: "net".into(),
        container_id: "c1".into(),
        ifname: "eth0".into(),
        netns: "/run/netns/x".into(),
        pod: Some(Pod {
            namespace: "default".into(),
            name: "web".into(),
            ..Pod::default()
        }),
        requested_ips: vec!["10.0.0.7/24".parse().unwrap()],
        requested_mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        bandwidth: Bandwidth {
            ingress: Some(Shaping {
                rate: 1_000_000,
                burst: 0,
            }),
            egress: None,
        },
        ..Allocate::default()
    }
}

fn allocated() -> Allocated {
    Allocated {
        endpoint_id: 7,
        host_ifname: "mr00000000001".into(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        host_mac: Mac([2, 0, 0, 0, 0, 2]),
        addresses: vec!["10.0.0.7/32".parse().unwrap()],
        gateways: vec![crate::GATEWAY_V4.into()],
        mtu: 1500,
        routes: vec![Route::from("0.0.0.0/0".parse::<ipnetwork::IpNetwork>().unwrap())],
    }
}

fn round_trip<T: serde::Serialize + serde::de::DeserializeOwned>(message: &T) -> T {
    let mut bytes = Vec::new();
    send(&mut bytes, message).unwrap();
    receive(&mut bytes.as_slice()).unwrap().unwrap()
}

#[test]
fn requests_and_responses_round_trip() {
    let attachment = crate::Attachment::new("c1", "eth0");
    for request in [
        Request::Allocate(Box::new(allocate())),
        Request::Program(Program {
            endpoint_id: 7,
            host_ifindex: 12,
            finishes: true,
        }),
        Request::Finish(Finish { endpoint_id: 7 }),
        Request::Release(Release {
            network: "net".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
        }),
        Request::Check(Check::default()),
        Request::Status(Status::default()),
        Request::Gc(Gc {
            network: "net".into(),
            valid: vec![attachment.clone()],
        }),
    ] {
        let message = Message::new(request);
        assert_eq!(round_trip(&message), message);
    }
    for response in [
        Response::Allocated(Box::new(allocated())),
        Response::Collected(Collected {
            released: vec![attachment],
        }),
        Response::Done,
        Response::Failed(CniError::new(code::NO_ADDRESS, "none left").with_details("10.0.0.0/24")),
    ] {
        let message = Message::new(response);
        assert_eq!(round_trip(&message), message);
    }
}

#[test]
fn the_wire_format_is_frozen() {
    let request = Message::new(Request::Program(Program {
        endpoint_id: 7,
        host_ifindex: 12,
        finishes: false,
    }));
    let wire = json!({"version": 1, "op": "program", "endpoint_id": 7, "host_ifindex": 12});
    assert_eq!(serde_json::to_value(&request).unwrap(), wire);
    let response = Message::new(Response::Failed(CniError::new(11, "later")));
    let wire = json!({"version": 1, "result": "failed", "code": 11, "msg": "later"});
    assert_eq!(serde_json::to_value(&response).unwrap(), wire);
}

#[test]
fn a_newer_neighbours_fields_and_operations_are_tolerated() {
    let newer = json!({"version": VERSION + 1, "op": "status", "network": "n", "colour": "blue"});
    let message: Message<Request> = serde_json::from_value(newer).unwrap();
    assert_eq!(
        message.accept().unwrap(),
        Request::Status(Status { network: "n".into() })
    );

    let newer = json!({"version": VERSION + 1, "op": "migrate", "to": {"node": "b"}});
    let message: Message<Request> = serde_json::from_value(newer).unwrap();
    assert_eq!(message.accept().unwrap(), Request::Unknown);

    let newer = json!({"version": VERSION + 1, "result": "maybe", "odds": 3});
    let message: Message<Response> = serde_json::from_value(newer).unwrap();
    assert_eq!(message.accept().unwrap(), Response::Unknown);
}

#[test]
fn an_older_neighbour_is_accepted_and_a_distant_one_is_told_why() {
    let older = Message {
        version: VERSION - 1,
        body: Request::Status(Status::default()),
    };
    assert!(older.accept().is_ok());
    let distant = Message {
        version: VERSION + 2,
        body: Request::Status(Status::default()),
    };
    assert_eq!(distant.accept().unwrap_err().code, code::PROTOCOL);
}

#[test]
fn oversized_and_cut_messages_are_errors() {
    let mut oversized = ((MAX_MESSAGE + 1) as u32).to_be_bytes().as_slice().to_vec();
    oversized.extend_from_slice(b"{}");
    assert!(matches!(
        receive::<Value>(&mut oversized.as_slice()),
        Err(CodecError::TooLong(_))
    ));
    assert!(matches!(
        send(&mut Vec::new(), &"x".repeat(MAX_MESSAGE)),
        Err(CodecError::TooLong(_))
    ));
    let mut bytes = Vec::new();
    send(&mut bytes, &json!({"a": 1})).unwrap();
    for cut in 1..bytes.len() {
        assert!(
            matches!(receive::<Value>(&mut &bytes[..cut]), Err(CodecError::Io(_))),
            "cut at {cut}"
        );
    }
    assert!(receive::<Value>(&mut [].as_slice()).unwrap().is_none());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = receive::<Message<Request>>(&mut bytes.as_slice());
        let mut framed = (bytes.len() as u32).to_be_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        let _ = receive::<Message<Request>>(&mut framed.as_slice());
    }
}

/// Serves one connection: each received request is handed to `answer`, `None` ends the connection.
fn serve(
    socket: &Path,
    mut answer: impl FnMut(Request) -> Option<Response> + Send + 'static,
) -> thread::JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while let Ok(Some(message)) = receive::<Message<Request>>(&mut stream) {
            match answer(message.body) {
                Some(response) => send(&mut stream, &Message::new(response)).unwrap(),
                None => return,
            }
        }
    })
}

#[test]
fn the_client_speaks_to_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let server = serve(&socket, |request| match request {
        Request::Allocate(_) => Some(Response::Allocated(Box::new(allocated()))),
        Request::Program(_) => Some(Response::Done),
        _ => Some(Response::Failed(CniError::new(code::NOT_AVAILABLE, "no"))),
    });
    let mut client = Client::connect(&socket, Duration::from_secs(10)).unwrap();
    assert_eq!(client.allocate(allocate()).unwrap(), allocated());
    client
        .program(Program {
            endpoint_id: 7,
            host_ifindex: 12,
            finishes: false,
        })
        .unwrap();
    assert_eq!(
        client.status(Status::default()).unwrap_err().code,
        code::NOT_AVAILABLE
    );
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_missing_silent_or_dying_agent_is_retried_later() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Client::connect(&folder.path().join("none"), Duration::from_secs(1)).unwrap_err();
    assert_eq!(missing.code, code::TRY_AGAIN_LATER);

    let silent = folder.path().join("silent");
    let _listener = UnixListener::bind(&silent).unwrap();
    let mut client = Client::connect(&silent, Duration::from_millis(20)).unwrap();
    assert_eq!(
        client.status(Status::default()).unwrap_err().code,
        code::TRY_AGAIN_LATER
    );

    let dying = folder.path().join("dying");
    let server = serve(&dying, |_| None);
    let mut client = Client::connect(&dying, Duration::from_secs(10)).unwrap();
    assert_eq!(
        client.status(Status::default()).unwrap_err().code,
        code::TRY_AGAIN_LATER
    );
    server.join().unwrap();
}

#[cfg(feature = "tokio")]
#[tokio::test]
async fn the_async_codec_reads_what_the_blocking_one_writes() {
    let message = Message::new(Request::Allocate(Box::new(allocate())));
    let mut blocking = Vec::new();
    send(&mut blocking, &message).unwrap();
    let mut asynchronous = Vec::new();
    send_async(&mut asynchronous, &message).await.unwrap();
    assert_eq!(blocking, asynchronous);
    let mut bytes = blocking.as_slice();
    assert_eq!(
        receive_async::<Message<Request>>(&mut bytes).await.unwrap(),
        Some(message)
    );
    assert!(
        receive_async::<Message<Request>>(&mut bytes)
            .await
            .unwrap()
            .is_none()
    );
    let mut cut = &blocking[..blocking.len() - 1];
    assert!(receive_async::<Message<Request>>(&mut cut).await.is_err());
}
