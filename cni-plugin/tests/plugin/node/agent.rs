//! An agent without a datapath: it allocates, records what it is asked, and undoes what a dead plugin began.

use super::Namespace;
use cni_plugin::{
    Attachment, CniError, GATEWAY_V4, GATEWAY_V6, Mac, code,
    rpc::{self, Allocate, Allocated, Checked, Collected, Message, Request, Response, Route},
};
use ipnetwork::IpNetwork;
use nix::sched::{CloneFlags, setns};
use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
};

#[derive(Default)]
struct State {
    next: u32,
    endpoints: BTreeMap<Attachment, (Allocated, bool)>,
    requests: Vec<Request>,
    refusals: BTreeMap<&'static str, CniError>,
    /// The flags of the host's end at each `program`.
    seen_at_program: Vec<String>,
    connections: Vec<UnixStream>,
    serving: usize,
    dies_at_program: bool,
    stopped: bool,
}

struct Shared {
    state: Mutex<State>,
    idle: Condvar,
    host: File,
    socket: PathBuf,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

pub(crate) struct Agent {
    shared: Arc<Shared>,
}

impl Agent {
    pub(crate) fn start(socket: &Path, host: &Namespace) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            idle: Condvar::new(),
            host: host.file.try_clone().unwrap(),
            socket: socket.to_owned(),
        });
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let served = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let mut state = served.lock();
                if state.stopped {
                    return;
                }
                state.connections.push(stream.try_clone().unwrap());
                state.serving += 1;
                drop(state);
                let served = Arc::clone(&served);
                thread::spawn(move || serve(&served, stream));
            }
        });
        Self { shared }
    }

    /// Makes an operation fail.
    pub(crate) fn refuse(&self, operation: &'static str, code: u32) {
        self.shared
            .lock()
            .refusals
            .insert(operation, CniError::new(code, format!("{operation} is refused")));
    }

    /// Makes the agent close its connection, and its socket, when it is asked to program.
    pub(crate) fn die_at_program(&self) {
        self.shared.lock().dies_at_program = true;
    }

    pub(crate) fn endpoints(&self) -> Vec<Attachment> {
        self.shared.lock().endpoints.keys().cloned().collect()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    pub(crate) fn allocation(&self) -> Allocate {
        let find = |request| match request {
            Request::Allocate(allocate) => Some(*allocate),
            _ => None,
        };
        self.requests()
            .into_iter()
            .rev()
            .find_map(find)
            .expect("no allocation was asked for")
    }

    pub(crate) fn seen_at_program(&self) -> Vec<String> {
        self.shared.lock().seen_at_program.clone()
    }

    /// Waits until every connection has ended, and with it the undoing of what dead plugins began.
    pub(crate) fn settle(&self) {
        let state = self.shared.lock();
        drop(
            self.shared
                .idle
                .wait_while(state, |state| state.serving > 0)
                .unwrap(),
        );
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopped = true;
        for connection in &state.connections {
            let _ = connection.shutdown(Shutdown::Both);
        }
        drop(state);
        let _ = UnixStream::connect(&self.shared.socket);
        let _ = std::fs::remove_file(&self.shared.socket);
    }
}

fn serve(shared: &Shared, mut stream: UnixStream) {
    let mut unfinished = None;
    while let Ok(Some(message)) = rpc::receive::<Message<Request>>(&mut stream) {
        let request = message.accept().unwrap();
        if let Request::Program(program) = request {
            note_host_end(shared, program.host_ifindex);
            let mut state = shared.lock();
            if state.dies_at_program {
                state.stopped = true;
                let _ = std::fs::remove_file(&shared.socket);
                let _ = stream.shutdown(Shutdown::Both);
                break;
            }
        }
        let response = answer(shared, request.clone());
        match (&request, &response) {
            (Request::Allocate(allocate), Response::Allocated(_)) => unfinished = Some(allocate.attachment()),
            (Request::Program(program), Response::Done) if program.finishes => {}
            (Request::Program(_) | Request::Finish(_) | Request::Release(_), Response::Done) => {
                unfinished = None
            }
            _ => {}
        }
        if rpc::send(&mut stream, &Message::new(response)).is_err() {
            break;
        }
    }
    let mut state = shared.lock();
    if let Some(attachment) = unfinished {
        state.endpoints.remove(&attachment);
    }
    state.serving -= 1;
    shared.idle.notify_all();
}

fn note_host_end(shared: &Shared, ifindex: u32) {
    let link = thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(&shared.host, CloneFlags::CLONE_NEWNET).unwrap();
            Command::new("ip").args(["-j", "link", "show"]).output().unwrap()
        });
        inside.join().unwrap()
    });
    let links: serde_json::Value = serde_json::from_slice(&link.stdout).unwrap();
    let seen = links
        .as_array()
        .unwrap()
        .iter()
        .find(|link| link["ifindex"] == ifindex)
        .unwrap()
        .clone();
    shared.lock().seen_at_program.push(seen["flags"].to_string());
}

fn answer(shared: &Shared, request: Request) -> Response {
    let mut state = shared.lock();
    state.requests.push(request.clone());
    let operation = serde_json::to_value(&request).unwrap()["op"]
        .as_str()
        .unwrap()
        .to_owned();
    if let Some(error) = state.refusals.get(operation.as_str()) {
        return Response::Failed(error.clone());
    }
    match request {
        Request::Allocate(allocate) => {
            state.next += 1;
            let endpoint = endpoint(state.next, &allocate);
            state
                .endpoints
                .insert(allocate.attachment(), (endpoint.clone(), false));
            Response::Allocated(Box::new(endpoint))
        }
        Request::Program(program) => {
            let wanted = state
                .endpoints
                .values_mut()
                .find(|(known, _)| known.endpoint_id == program.endpoint_id);
            wanted.unwrap().1 = true;
            Response::Done
        }
        Request::Release(release) => {
            state.endpoints.remove(&release.attachment());
            Response::Done
        }
        Request::Check(check) => {
            match state
                .endpoints
                .get(&Attachment::new(check.container_id, check.ifname))
            {
                Some((endpoint, true)) => Response::Checked(Box::new(Checked {
                    endpoint_id: endpoint.endpoint_id,
                    host_ifname: endpoint.host_ifname.clone(),
                    mac: endpoint.mac,
                    addresses: endpoint.addresses.clone(),
                })),
                Some(_) => Response::Failed(CniError::new(
                    code::CHECK_FAILED,
                    "the endpoint is not programmed",
                )),
                None => Response::Failed(CniError::new(
                    code::UNKNOWN_CONTAINER,
                    "the agent does not know it",
                )),
            }
        }
        Request::Status(_) | Request::Finish(_) => Response::Done,
        Request::Gc(gc) => {
            let released: Vec<Attachment> = state
                .endpoints
                .keys()
                .filter(|known| !gc.valid.contains(known))
                .cloned()
                .collect();
            state.endpoints.retain(|known, _| gc.valid.contains(known));
            Response::Collected(Collected { released })
        }
        Request::Unknown => Response::unknown_operation(),
    }
}

fn endpoint(number: u32, allocate: &Allocate) -> Allocated {
    let low = u16::try_from(number).unwrap();
    let host = |address: &IpNetwork| IpNetwork::from(address.ip());
    let mut addresses: Vec<IpNetwork> = allocate
        .delegated_ips
        .iter()
        .chain(&allocate.requested_ips)
        .map(host)
        .collect();
    if addresses.is_empty() {
        let v4 = Ipv4Addr::from(0x0a00_0000 + number);
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, low);
        addresses = vec![IpAddr::from(v4).into(), IpAddr::from(v6).into()];
    }
    let has = |v4: bool| addresses.iter().any(|address| address.is_ipv4() == v4);
    let [high, rest] = low.to_be_bytes();
    let default = |text: &str| Route::from(text.parse::<IpNetwork>().unwrap());
    let families = [
        (GATEWAY_V4.into(), default("0.0.0.0/0")),
        (GATEWAY_V6.into(), default("::/0")),
    ];
    let (gateways, routes): (Vec<IpAddr>, Vec<Route>) = families
        .into_iter()
        .filter(|(gateway, _): &(IpAddr, Route)| has(gateway.is_ipv4()))
        .unzip();
    Allocated {
        endpoint_id: number,
        host_ifname: allocate.attachment().host_ifname(),
        mac: allocate.requested_mac.unwrap_or(Mac([2, 0, 0, 1, high, rest])),
        host_mac: Mac([2, 0, 0, 2, high, rest]),
        addresses,
        gateways,
        mtu: allocate.mtu.unwrap_or(1450),
        routes,
    }
}
