//! The world in the kernel's maps, in a network namespace of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, PerCpuArray, ProgramArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{CgroupAttachMode, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, Pod};
use cni_ebpf::abi::*;
use cni_ebpf::datapath::{Verdict, Work};

use super::content::{device, endpoints, ranges, routes, services, tables};
use super::devices::devices;
use super::rules::rules;
use super::{CONFIG, Hook, ifindex};
use crate::cgroup::Cgroup;
use crate::memory::Frame;
use crate::object;

/// A value out of the layout, as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Bytes<const N: usize>([u8; N]);

// SAFETY: bytes.
unsafe impl<const N: usize> Pod for Bytes<N> {}

fn bytes<T: Plain, const N: usize>(value: &T) -> Bytes<N> {
    let mut out = [0; N];
    out.copy_from_slice(as_bytes(value));
    Bytes(out)
}

/// The world in the kernel. It lives in a network namespace of its own, which the calling thread enters for good.
pub struct Kernel {
    ebpf: Ebpf,
}

/// Of [`Config::host_netns`]: the namespace that is made for the world.
pub const THIS_NETNS: u64 = u64::MAX;

/// The cookie of the calling thread's network namespace.
pub fn netns_cookie() -> Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let (mut cookie, mut size) = (0u64, size_of::<u64>() as u32);
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: the kernel writes at most `size` bytes into `cookie`.
    let failed = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    ensure!(
        failed == 0,
        "SO_NETNS_COOKIE: {}",
        std::io::Error::last_os_error()
    );
    Ok(cookie)
}

/// A field of the scratch.
fn field<T: Plain + Copy>(raw: &[u8], at: usize) -> Result<T> {
    let bytes = raw.get(at..at + size_of::<T>());
    bytes.and_then(from_bytes).context("the scratch is too short")
}

impl Kernel {
    /// Has the programs for sockets run for what this thread opens from now on.
    pub fn balance_sockets(&mut self) -> Result<Cgroup> {
        let cgroup = Cgroup::create(&format!("millrace-test-{}", nix::unistd::gettid()))?;
        for program in object::SOCKET_PROGRAMS {
            let folder = std::fs::File::open(cgroup.path())?;
            object::load_socket(&mut self.ebpf, program)?.attach(folder, CgroupAttachMode::Single)?;
        }
        cgroup.enter()?;
        Ok(cgroup)
    }

    /// What the sockets of this world dialled.
    pub fn dialled(&mut self) -> Result<Vec<Dialled>> {
        let map: HashMap<_, Bytes<32>, Bytes<32>> = HashMap::try_from(self.map("sockets")?)?;
        let entries = map.iter().flatten();
        Ok(entries.filter_map(|(_, value)| from_bytes(&value.0)).collect())
    }

    /// How many connections of each Service have begun.
    pub fn opened(&mut self) -> Result<BTreeMap<u32, u64>> {
        let map: HashMap<_, u32, u64> = HashMap::try_from(self.map("service_opened")?)?;
        Ok(map.iter().collect::<Result<_, _>>()?)
    }

    pub fn new() -> Result<Self> {
        Self::with(&CONFIG)
    }

    /// The world with programs of another configuration.
    pub fn with(config: &Config) -> Result<Self> {
        Self::sized(config, 4096)
    }

    /// The same, with maps of up to `most` entries.
    pub fn sized(config: &Config, most: u32) -> Result<Self> {
        Self::of(&object::bytes()?, config, most)
    }

    /// The same with another object's programs.
    pub fn of(object: &[u8], config: &Config, most: u32) -> Result<Self> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .context("a network namespace of our own")?;
        // One CPU, so that the scratch of the run is where we look for it.
        let mut one = nix::sched::CpuSet::new();
        one.set(0)?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one)?;
        devices()?;
        let mut kernel = Self::load(object, config, most)?;
        // A device takes frames in a test run once it has a program.
        object::load_xdp(&mut kernel.ebpf, object::XDP_PROGRAM)?
            .attach(&format!("d{}", ifindex::NETDEV), XdpMode::Driver)?;
        Ok(kernel)
    }

    /// Another load of the same world, with tables of its own, that knows the programs of this one and is known to it.
    pub fn successor(&mut self, config: &Config) -> Result<Self> {
        let mut next = Self::load(&object::bytes()?, &Config { side: 1, ..*config }, 4096)?;
        let mut entries = Vec::new();
        for (side, load) in [(0, &mut *self), (1, &mut next)] {
            for (program, hook) in object::PROGRAMS.into_iter().zip(hook::FROM_POD..) {
                let program: &SchedClassifier = load.ebpf.program(program).context("program")?.try_into()?;
                entries.push((program_place(side, hook), program.fd()?.try_clone()?));
            }
        }
        for load in [&mut *self, &mut next] {
            let mut programs = ProgramArray::try_from(load.map("programs")?)?;
            for (place, program) in &entries {
                programs.set(*place, program, 0)?;
            }
        }
        Ok(next)
    }

    fn load(object: &[u8], config: &Config, most: u32) -> Result<Self> {
        let mut config = *config;
        if config.host_netns == THIS_NETNS {
            config.host_netns = netns_cookie()?;
        }
        let mut ebpf = object::open_sized(object, &config, most)?;
        for program in object::PROGRAMS {
            object::load(&mut ebpf, program)?;
        }
        let mut kernel = Self { ebpf };
        kernel.fill()?;
        Ok(kernel)
    }

    fn fill(&mut self) -> Result<()> {
        let rules = rules();
        let services = services();
        for (addr, endpoint) in endpoints() {
            self.endpoint(addr, &endpoint)?;
        }
        self.put_prefixes::<_, 32>("routes", &routes())?;
        self.put::<_, _, 4, 48>("devices", &[(ifindex::NETDEV, device())])?;
        self.put::<_, _, 8, 96>("rule_groups", &rules.groups)?;
        self.put::<_, _, 8, 16>("classes", &rules.classes)?;
        self.put::<_, _, 16, 16>("peers", &rules.peers)?;
        self.put_prefixes::<_, 4>("cidrs", &rules.cidrs)?;
        self.put::<_, _, 24, 32>("services", &services.frontends)?;
        for (place, slot) in &services.slots {
            self.slot(*place, slot)?;
        }
        self.put::<_, _, 8, 4>("service_members", &services.members)?;
        self.put::<_, _, 4, 32>("backends", &services.backends)?;
        self.put::<_, _, 8, 256>("maglev", &tables())?;
        for (source, value) in ranges() {
            self.range(&source, value)?;
        }
        self.settings(&super::content::settings())?;
        let mut sets: Array<_, Bytes<8>> = Array::try_from(self.map("rule_sets")?)?;
        for (id, set) in &rules.sets {
            sets.set(*id, bytes(set), 0)?;
        }
        let mut lists: LpmTrie<_, Bytes<12>, Bytes<8>> = LpmTrie::try_from(self.map("rules")?)?;
        for (key, list) in &rules.lists {
            let data: Bytes<16> = bytes(key);
            let mut rest = [0; 12];
            rest.copy_from_slice(&data.0[4..]);
            lists.insert(&Key::new(key.prefix_len, Bytes(rest)), bytes::<_, 8>(list), 0)?;
        }
        Ok(())
    }

    /// The object, with this world in its maps.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("map {name}"))
    }

    fn put<K: Plain, V: Plain, const KEY: usize, const VALUE: usize>(
        &mut self,
        name: &str,
        entries: &[(K, V)],
    ) -> Result<()> {
        let mut map: HashMap<_, Bytes<KEY>, Bytes<VALUE>> = HashMap::try_from(self.map(name)?)?;
        for (key, value) in entries {
            map.insert(bytes::<_, KEY>(key), bytes::<_, VALUE>(value), 0)?;
        }
        Ok(())
    }

    fn put_prefixes<V: Plain, const VALUE: usize>(
        &mut self,
        name: &str,
        entries: &[(Prefix, V)],
    ) -> Result<()> {
        let mut map: LpmTrie<_, [u32; 4], Bytes<VALUE>> = LpmTrie::try_from(self.map(name)?)?;
        for (prefix, value) in entries {
            map.insert(&Key::new(prefix.len, prefix.words), bytes::<_, VALUE>(value), 0)?;
        }
        Ok(())
    }

    /// Writes an endpoint.
    pub fn endpoint(&mut self, addr: Addr, endpoint: &Endpoint) -> Result<()> {
        self.put::<_, _, 16, 4>("addresses", &[(addr, endpoint.id)])?;
        self.place(endpoint.id, endpoint)
    }

    /// Takes an endpoint away.
    pub fn remove_endpoint(&mut self, id: u32) -> Result<()> {
        self.place(id, &Endpoint::default())
    }

    fn place(&mut self, id: u32, endpoint: &Endpoint) -> Result<()> {
        let mut endpoints: Array<_, Bytes<72>> = Array::try_from(self.map("endpoints")?)?;
        Ok(endpoints.set(Endpoint::slot(id), bytes(endpoint), 0)?)
    }

    pub fn settings(&mut self, value: &Settings) -> Result<()> {
        let mut settings: Array<_, Bytes<64>> = Array::try_from(self.map("settings")?)?;
        Ok(settings.set(0, bytes(value), 0)?)
    }

    /// Fills the bucket of a pod with a limit.
    pub fn refill(&mut self, pod: u32, bucket: &Bucket) -> Result<()> {
        self.put::<_, _, 4, 16>("buckets", &[(super::bucket_key(pod), bucket.clone())])
    }

    fn range(&mut self, source: &SourceRange, value: u32) -> Result<()> {
        let mut map: LpmTrie<_, Bytes<20>, u32> = LpmTrie::try_from(self.map("service_ranges")?)?;
        let data: Bytes<24> = bytes(source);
        let mut rest = [0; 20];
        rest.copy_from_slice(&data.0[4..]);
        Ok(map.insert(&Key::new(source.len, Bytes(rest)), value, 0)?)
    }

    /// Writes a frontend.
    pub fn service(&mut self, key: ServiceKey, service: Service) -> Result<()> {
        self.put::<_, _, 24, 32>("services", &[(key, service)])
    }

    /// Writes where a slot leads to.
    pub fn slot(&mut self, place: u32, slot: &Slot) -> Result<()> {
        let mut slots: Array<_, Bytes<32>> = Array::try_from(self.map("service_slots")?)?;
        Ok(slots.set(place, bytes(slot), 0)?)
    }

    /// Makes a backend one of a Service's.
    pub fn member(&mut self, key: MemberKey) -> Result<()> {
        self.put::<_, _, 8, 4>("service_members", &[(key, 1_u32)])
    }

    /// Takes a member away.
    pub fn remove_member(&mut self, key: MemberKey) -> Result<()> {
        let mut map: HashMap<_, Bytes<8>, Bytes<4>> = HashMap::try_from(self.map("service_members")?)?;
        Ok(map.remove(&bytes(&key))?)
    }

    /// Writes a backend.
    pub fn backend(&mut self, id: u32, backend: Backend) -> Result<()> {
        self.put::<_, _, 4, 32>("backends", &[(id, backend)])
    }

    /// Takes a backend away.
    pub fn remove_backend(&mut self, id: u32) -> Result<()> {
        let mut map: HashMap<_, Bytes<4>, Bytes<32>> = HashMap::try_from(self.map("backends")?)?;
        Ok(map.remove(&bytes(&id))?)
    }

    /// Binds a client to a backend.
    pub fn affinity(&mut self, key: AffinityKey, last: &Affinity) -> Result<()> {
        self.put::<_, _, 24, 16>("affinity", &[(key, last.clone())])
    }

    /// Forgets connections and fragments.
    pub fn forget(&mut self) -> Result<()> {
        for name in ["conntrack", "conntrack_new"] {
            self.clear::<40, 192>(name)?;
        }
        for name in ["nat", "nat_new"] {
            self.clear::<40, 56>(name)?;
        }
        self.clear::<24, 16>("affinity")?;
        self.clear::<4, 8>("service_opened")?;
        let mut exhausted: Array<_, u64> = Array::try_from(self.map("exhausted")?)?;
        for place in 0..EXHAUSTED_PLACES {
            exhausted.set(place, 0, 0)?;
        }
        self.clear::<40, 16>("fragments")
    }

    fn clear<const KEY: usize, const VALUE: usize>(&mut self, name: &str) -> Result<()> {
        let mut map: HashMap<_, Bytes<KEY>, Bytes<VALUE>> = HashMap::try_from(self.map(name)?)?;
        let keys: Vec<_> = map.keys().flatten().collect();
        for key in keys {
            map.remove(&key)?;
        }
        Ok(())
    }

    /// How many entries a table of connections has.
    pub fn flows(&mut self, name: &str) -> Result<usize> {
        let map: HashMap<_, Bytes<40>, Bytes<192>> = HashMap::try_from(self.map(name)?)?;
        Ok(map.keys().flatten().count())
    }

    /// When each connection of a table was seen last.
    pub fn seen(&mut self, name: &str) -> Result<Vec<u64>> {
        let map: HashMap<_, Bytes<40>, Bytes<192>> = HashMap::try_from(self.map(name)?)?;
        let at = core::mem::offset_of!(Flow, seen);
        map.iter()
            .map(|entry| from_bytes(&entry?.1.0[at..at + 8]).context("eight bytes"))
            .collect()
    }

    /// Makes what the programs draw by themselves what it is in memory.
    pub fn share(&mut self, secrets: &Secrets) -> Result<()> {
        let mut map: Array<_, Bytes<16>> = Array::try_from(self.map("secrets")?)?;
        Ok(map.set(0, bytes(secrets), 0)?)
    }

    /// Runs a program over the packet. `out` receives the packet as it left.
    pub fn run(&mut self, hook: Hook, frame: &Frame, out: &mut Vec<u8>) -> Result<Result<Verdict, Reason>> {
        Ok(self.run_timed(hook, frame, out)?.0)
    }

    /// The same, with the time that the program took.
    pub fn run_timed(
        &mut self,
        hook: Hook,
        frame: &Frame,
        out: &mut Vec<u8>,
    ) -> Result<(Result<Verdict, Reason>, Duration)> {
        if hook == Hook::XdpNodeport {
            return self.run_frame(frame, out);
        }
        let (returned, duration) = self.run_program(hook, frame, out)?;
        let (outcome, answered) = self.outcome()?;
        let expected: i32 = match &outcome {
            Err(_) if answered => 7,
            Err(_) => 2,
            Ok(Verdict::Pass | Verdict::Handled | Verdict::Arrived | Verdict::TunnelKey { .. }) => -1,
            Ok(_) => 7,
        };
        ensure!(returned == expected, "{outcome:?} gave {returned}");
        Ok((outcome, duration))
    }

    /// Runs a program of tc; gives what it returns, whichever load's program decided.
    pub fn run_program(&mut self, hook: Hook, frame: &Frame, out: &mut Vec<u8>) -> Result<(i32, Duration)> {
        let mut context = [0u8; 192];
        context[8..12].copy_from_slice(&frame.mark.to_ne_bytes());
        context[36..40].copy_from_slice(&frame.ingress_ifindex.to_ne_bytes());
        context[40..44].copy_from_slice(&frame.ifindex.to_ne_bytes());
        context[176..180].copy_from_slice(&frame.segment_size.to_ne_bytes());
        out.resize(frame.bytes.len() + 64, 0);
        let program: &SchedClassifier = self.ebpf.program(hook.name()).context("program")?.try_into()?;
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(&frame.bytes),
                data_out: Some(out),
                ctx_in: Some(&context),
                ..TestRunOptions::new()
            })
            .with_context(|| format!("{} over {} bytes", hook.name(), frame.bytes.len()))?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value as i32, result.duration))
    }

    /// The same for the program that meets frames.
    fn run_frame(&mut self, frame: &Frame, out: &mut Vec<u8>) -> Result<(Result<Verdict, Reason>, Duration)> {
        const PASS: u32 = 2;
        const DROP: u32 = 1;
        const TX: u32 = 3;
        let mut context = [0u8; 24];
        context[4..8].copy_from_slice(&u32::try_from(frame.bytes.len())?.to_ne_bytes());
        context[12..16].copy_from_slice(&frame.ifindex.to_ne_bytes());
        out.resize(frame.bytes.len() + 64, 0);
        let program: &Xdp = self
            .ebpf
            .program(object::XDP_PROGRAM)
            .context("program")?
            .try_into()?;
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(&frame.bytes),
                data_out: Some(out),
                ctx_in: Some(&context),
                ..TestRunOptions::new()
            })
            .with_context(|| format!("{} over {} bytes", object::XDP_PROGRAM, frame.bytes.len()))?;
        out.truncate(result.data_size_out as usize);
        if result.return_value == PASS {
            return Ok((Ok(Verdict::Pass), result.duration));
        }
        let (outcome, _) = self.outcome()?;
        let expected = if outcome.is_ok() { TX } else { DROP };
        ensure!(
            result.return_value == expected,
            "{outcome:?} gave {}",
            result.return_value
        );
        Ok((outcome, result.duration))
    }

    /// What the last run left in its scratch, and whether it was answered.
    pub fn outcome(&mut self) -> Result<(Result<Verdict, Reason>, bool)> {
        let raw = self.scratch()?;
        let at = |offset: usize| raw[offset];
        let scratch = Work {
            way: at(core::mem::offset_of!(Work, way)),
            to_ifindex: field(&raw, core::mem::offset_of!(Work, to_ifindex))?,
            gateway: field(&raw, core::mem::offset_of!(Work, gateway))?,
            ..Work::default()
        };
        let answered = at(core::mem::offset_of!(Work, answered)) != 0;
        let reason = Reason::from_number(at(core::mem::offset_of!(Work, reason)));
        Ok((reason.map_or_else(|| Ok(scratch.verdict()), Err), answered))
    }

    /// When the last run was, as it saw the clock, or the last one that looked at it.
    pub fn moment(&mut self) -> Result<u64> {
        field(&self.scratch()?, core::mem::offset_of!(Work, now))
    }

    fn scratch(&mut self) -> Result<[u8; size_of::<Work>()]> {
        const WORK: usize = size_of::<Work>();
        let work: PerCpuArray<_, Bytes<WORK>> = PerCpuArray::try_from(self.map("work")?)?;
        let values = work.get(&0, 0)?;
        let Bytes(raw) = values[0];
        Ok(raw)
    }

    pub fn program(&mut self, hook: Hook) -> Result<&mut SchedClassifier> {
        Ok(self
            .ebpf
            .program_mut(hook.name())
            .context("program")?
            .try_into()?)
    }
}
