//! Maps and programs: what an agent finds, what it makes of it, and what it loads over it.
//!
//! The agent creates and pins every map itself and lets aya reuse the pins, because aya reuses a pin without looking
//! at it. A map whose size or layout is not the wanted one is replaced while the old programs still run on it:
//!
//! 1. the new map is made beside the old one and filled from it;
//! 2. the programs are loaded on the new map and exchanged under their links one by one. What the old map gains meanwhile
//!    is copied right before the first exchange, between exchanges that take long, and right after the last
//!    ([`Loaded::catch_up`], [`Loaded::keep_up`]): a connection that began in between is unknown to the new programs, and one
//!    that begins with a new program to the old ones. What they do not know they hand to each other (`handover`), and what is
//!    in the midst of a stream that neither knows they drop ([`Settings::unsettled_until`]), because to lead it to another
//!    endpoint, or to the host, is to have it reset;
//! 3. when no link runs an old program any more, what the old map has gained to the last is copied too, and the new map
//!    takes the old one's name ([`Loaded::settle`]).
//!
//! Dying at any of these points leaves either the old name or both; the next agent goes on from there.

mod handover;
mod layout;
mod log;
mod prepare;
mod signals;

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{CgroupSockAddr, Program as Entry, ProgramError, ProgramFd, SchedClassifier, Xdp},
};
use cni_ebpf::abi::{Config, MAPS, MapSpec, Settings, as_bytes, from_bytes, socket_lb};
use nix::time::{ClockId, clock_gettime};

use super::{
    KernelError, Pins,
    links::{LoadedProgram, Programs},
    maps::Map,
    pins, sockets,
};
use crate::{
    config::MapSizes,
    desired::{Place, Program, SocketProgram},
};

use handover::Handover;
pub use prepare::Unsettled;

/// The object that was built with this binary.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/millrace.bpf.o"));

/// Between two passes over maps that are being replaced, in passes, while links are exchanged.
const PAUSE: u32 = 4;

/// For how long programs that are being exchanged hold back what is in the midst of connections that they do not know. Once
/// maps are settled the row is written anew, so this is for an agent that dies before.
const HOLD: Duration = Duration::from_secs(1);

/// The name of the read-only global in the object.
const CONFIG: &str = "CONFIG";

/// Programs with their maps, ready to be attached.
pub struct Loaded {
    pub config: Config,
    pub programs: Programs,
    /// None where sockets are not balanced.
    pub sockets: sockets::Programs,
    pub maps: BTreeMap<&'static str, Map>,
    unsettled: Vec<Unsettled>,
    /// As long as programs of the load before may know what these do not.
    handover: Option<Handover>,
    /// When [`Loaded::catch_up`] ended last, and how long it took.
    caught_up: Option<(Instant, Duration)>,
    /// Of programs built to tell what they do.
    _messages: Option<log::Messages>,
}

/// How many entries each map shall have.
pub fn entries(spec: &MapSpec, sizes: &MapSizes) -> u32 {
    let configured = match spec.name {
        "addresses" => sizes.endpoints,
        "peers" => sizes.peers,
        "routes" => sizes.routes,
        "conntrack" | "nat" => sizes.conntrack,
        "conntrack_new" | "nat_new" => sizes.conntrack_new,
        "fragments" => sizes.fragments,
        "services" => sizes.services,
        // A Service's address needs no count, and few of its ports are ever dialled on one node.
        "service_opened" => sizes.services / 2,
        "service_slots" | "service_members" => sizes.service_slots,
        "backends" => sizes.backends,
        "maglev" => sizes.maglev,
        "service_ranges" => sizes.service_ranges,
        "sockets" => sizes.sockets,
        "events" => sizes.events,
        _ => 0,
    };
    if configured == 0 { spec.entries } else { configured }
}

/// Makes the maps what they should be and loads the programs of `object` on them. What is attached stays attached and
/// goes on with what it has.
pub fn load(object: &[u8], pins: &Pins, config: Config, sizes: &MapSizes) -> Result<Loaded, KernelError> {
    check_bpffs(pins)?;
    if object.is_empty() {
        return Err(
            KernelError::new("load the programs", "this binary was built without them")
                .with_remedy("build with `cargo xtask build`"),
        );
    }
    let mut loaded = Loaded {
        config,
        programs: Programs::new(),
        sockets: sockets::Programs::new(),
        maps: BTreeMap::new(),
        unsettled: Vec::new(),
        handover: None,
        caught_up: None,
        _messages: None,
    };
    let mut paths = Vec::new();
    for spec in MAPS {
        let prepared = prepare::map(pins, spec, entries(spec, sizes))?;
        paths.push((spec.name, prepared.path));
        loaded.maps.insert(spec.name, prepared.map);
        loaded.unsettled.extend(prepared.unsettled);
    }
    let handover = Handover::begin(loaded.map("programs")?.duplicate()?)?;
    let told = Config {
        side: handover.side(),
        // Not part of what is wanted, but what is found.
        host_netns: sockets::netns_cookie()
            .map_err(|error| KernelError::new("read the cookie of the host's network namespace", error))?,
        ..config
    };
    let mut ebpf = load_object(object, &told, &paths)?;
    for program in Program::ALL {
        if program.place() != Place::Driver || config.xdp != 0 {
            loaded.programs.insert(program, load_program(&mut ebpf, program)?);
        }
    }
    if config.socket_lb != socket_lb::OFF {
        for program in SocketProgram::ALL {
            let loaded_program = load_socket_program(&mut ebpf, program)?;
            loaded.sockets.insert(program, loaded_program);
        }
    }
    prepare::collect(pins)?;
    // The verifier took its time, and old programs wrote meanwhile.
    loaded.refresh()?;
    handover.enter(&loaded.programs)?;
    if loaded.is_settled() {
        handover.end()?;
    } else {
        loaded.handover = Some(handover);
    }
    loaded._messages = log::Messages::of(&mut ebpf);
    Ok(loaded)
}

impl Loaded {
    /// Has the maps that are being replaced be as the old ones are, as long as no program of this load runs.
    fn refresh(&mut self) -> Result<(), KernelError> {
        self.each_unsettled(Unsettled::refresh)
    }

    /// Copies what old programs have added to the maps that are being replaced.
    pub fn catch_up(&mut self) -> Result<(), KernelError> {
        self.refresh()?;
        self.hold_back()?;
        let begin = Instant::now();
        self.each_unsettled(Unsettled::catch_up)?;
        self.caught_up = Some((Instant::now(), begin.elapsed()));
        Ok(())
    }

    /// Has programs hand to each other what they do not know, for a moment, and drop what is in the midst of a connection that
    /// neither knows. Old ones hear of it too, as long as the map of settings is the same.
    fn hold_back(&self) -> Result<(), KernelError> {
        if self.is_settled() {
            return Ok(());
        }
        let map = self.map("settings")?;
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
            .map_err(|error| KernelError::new("read the clock", error))?;
        let until = Duration::from(now).saturating_add(HOLD).as_nanos();
        let key = 0_u32.to_ne_bytes();
        let found = map.get(&key)?.and_then(|value| from_bytes(&value));
        let settings = Settings {
            unsettled_until: u64::try_from(until).unwrap_or(u64::MAX),
            hands_over: 1,
            ..found.unwrap_or_default()
        };
        map.put(&key, as_bytes(&settings))
    }

    /// From the last, as `settle` goes: a connection moves from the table of new ones to the one before it, and is seen in
    /// one of them if they are read in this order.
    fn each_unsettled(
        &mut self,
        step: impl Fn(&mut Unsettled, &Map) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        for unsettled in self.unsettled.iter_mut().rev() {
            if let Some(map) = self.maps.get(unsettled.spec.name) {
                step(unsettled, map)?;
            }
        }
        Ok(())
    }

    /// Before a program of this load is attached: catches up, if the last time is so long ago that it makes the whole
    /// hardly longer. What is held back stays so.
    pub fn keep_up(&mut self) -> Result<(), KernelError> {
        self.unsettled.iter_mut().for_each(Unsettled::touch);
        match self.caught_up {
            _ if self.is_settled() => Ok(()),
            Some((at, took)) if at.elapsed() < took * PAUSE => self.hold_back(),
            _ => self.catch_up(),
        }
    }

    /// Ends the replacement of maps, when every live link runs a program of this load.
    pub fn settle(&mut self) -> Result<(), KernelError> {
        self.hold_back()?;
        while let Some(unsettled) = self.unsettled.last_mut() {
            let map = self.maps.get(unsettled.spec.name);
            unsettled.settle(map)?;
            self.unsettled.pop();
        }
        if let Some(handover) = &self.handover {
            handover.end()?;
            self.handover = None;
        }
        Ok(())
    }

    /// Whether maps of an earlier agent still wait for [`Loaded::settle`].
    pub fn is_settled(&self) -> bool {
        self.unsettled.is_empty() && self.handover.is_none()
    }

    fn map(&self, name: &str) -> Result<&Map, KernelError> {
        let missing = || KernelError::new(format!("use map {name}"), "it has not been made");
        self.maps.get(name).ok_or_else(missing)
    }
}

fn check_bpffs(pins: &Pins) -> Result<(), KernelError> {
    let root = pins.root().display();
    let action = format!("use {root}");
    match pins::on_bpffs(pins.root()) {
        Ok(true) => {}
        Ok(false) => {
            return Err(KernelError::new(action, "it is not on a BPF file system").with_remedy(
                "mount one on the host (`mount -t bpf bpf /sys/fs/bpf`) and hand /sys/fs/bpf to the agent's container",
            ));
        }
        Err(error) => return Err(KernelError::new(action, error)),
    }
    std::fs::create_dir_all(pins.maps()).map_err(|error| {
        KernelError::new(format!("create {}", pins.maps().display()), error).with_remedy("run as root")
    })
}

fn load_object(
    object: &[u8],
    config: &Config,
    paths: &[(&'static str, PathBuf)],
) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    // The object has no relocations against the kernel's types, and reading them takes longer than loading.
    loader.btf(None);
    loader.override_global(CONFIG, as_bytes(config), true);
    for (name, path) in paths {
        loader.map_pin_path(name, path.as_path());
    }
    loader.load(object).map_err(|error: EbpfError| {
        KernelError::new("load the object file", chain(&error))
            .with_remedy("the object is not of this release: build with `cargo xtask build`")
    })
}

fn load_program(ebpf: &mut Ebpf, program: Program) -> Result<LoadedProgram, KernelError> {
    load_entry(ebpf, program.name(), |entry| {
        if program.place() == Place::Driver {
            let program: &mut Xdp = entry.try_into()?;
            signals::hold_back(|| program.load())?;
            return Ok(program.fd()?.try_clone()?);
        }
        let program: &mut SchedClassifier = entry.try_into()?;
        signals::hold_back(|| program.load())?;
        Ok(program.fd()?.try_clone()?)
    })
}

fn load_socket_program(ebpf: &mut Ebpf, program: SocketProgram) -> Result<LoadedProgram, KernelError> {
    load_entry(ebpf, program.name(), |entry| {
        let program: &mut CgroupSockAddr = entry.try_into()?;
        signals::hold_back(|| program.load())?;
        Ok(program.fd()?.try_clone()?)
    })
}

fn load_entry(
    ebpf: &mut Ebpf,
    name: &str,
    load: impl FnOnce(&mut Entry) -> Result<ProgramFd, ProgramError>,
) -> Result<LoadedProgram, KernelError> {
    let action = || format!("load program {name}");
    let entry = ebpf
        .program_mut(name)
        .ok_or_else(|| KernelError::new(action(), "the object does not contain it"))?;
    let fd = load(entry).map_err(|error| verifier_error(action(), &error))?;
    let fd = std::os::fd::AsFd::as_fd(&fd).try_clone_to_owned();
    fd.and_then(LoadedProgram::new)
        .map_err(|error| KernelError::new(action(), error))
}

/// Lines of the verifier's log that an error shows; all of it goes to the debug log.
const LOG_LINES: usize = 12;

fn verifier_error(action: String, error: &ProgramError) -> KernelError {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return KernelError::new(action, chain(error));
    };
    let log = verifier_log.to_string();
    tracing::debug!(log, "{action}: the verifier's log");
    if matches!(io_error.raw_os_error(), Some(libc::EPERM)) && log.is_empty() {
        return KernelError::new(action, io_error)
            .with_remedy("the agent needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON");
    }
    KernelError::new(
        action,
        format!(
            "the kernel's verifier refused it ({io_error}):\n{}",
            last_lines(&log)
        ),
    )
    .with_remedy(
        "programs that are attached go on; report this with the kernel's version (`uname -r`) and \
             the log at RUST_LOG=debug",
    )
}

/// The end of a log, where the reason stands.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let skip = lines.len().saturating_sub(LOG_LINES);
    lines
        .iter()
        .skip(skip)
        .fold(String::new(), |text, line| text + "    " + line + "\n")
}

/// An error with its causes: aya's own texts leave them out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// For [`prepare`] and [`layout`].
fn pin_error(path: &std::path::Path, error: &io::Error) -> KernelError {
    KernelError::new(format!("pin {}", path.display()), error).with_remedy("run as root with CAP_BPF")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_the_end_of_the_log() {
        let log: String = (0..40).map(|i| format!("{i}: (b7) r0 = 0\n\n")).collect();
        let text = last_lines(&log);
        assert_eq!(text.lines().count(), LOG_LINES);
        assert!(text.ends_with("39: (b7) r0 = 0\n"));
        assert_eq!(last_lines(""), "");
    }

    #[test]
    fn configured_sizes_win_over_the_layouts() {
        let spec = |name| MAPS.iter().find(|spec| spec.name == name).unwrap();
        let sizes = MapSizes {
            conntrack: 7,
            ..MapSizes::default()
        };
        assert_eq!(entries(spec("conntrack"), &sizes), 7);
        assert_eq!(entries(spec("nat"), &sizes), 7);
        assert_eq!(entries(spec("peers"), &sizes), spec("peers").entries);
    }
}
