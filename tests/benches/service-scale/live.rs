//! From objects to live maps: the agent, a bare batch write of the same rows, and kube-proxy on the same API server.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use cni_tests::bench::Report;
use cni_tests::bench::cluster::{Crowd, KubeProxy, MILLRACE, Mode};
use cni_tests::bench::program::open;
use cni_tests::bench::series::{Samples, median};

const ENDPOINTS: usize = 10;
const BARE: &str = "bare batch writes";
/// From all objects being known.
const WRITTEN: &str = "objects to live maps";
/// From the start of the process.
const STARTED: &str = "start to live maps";
/// What a server takes to send the lists.
const LISTS: &str = "bare lists";
/// For a peer to be done with all of it.
const PATIENCE: Duration = Duration::from_secs(150);

/// The rows of a map, keys and values one behind the other.
struct Rows {
    map: &'static str,
    count: u32,
    keys: Vec<u8>,
    values: Vec<u8>,
}

fn read<const KEY: usize, const VALUE: usize>(pins: &Path, map: &'static str) -> Result<Rows> {
    let pin = pins.join(format!("{map}_v{}", cni_ebpf::abi::version(map)));
    let data = MapData::from_pin(&pin).with_context(|| pin.display().to_string())?;
    let all: HashMap<_, [u8; KEY], [u8; VALUE]> = HashMap::try_from(Map::HashMap(data))?;
    let mut rows = Rows {
        map,
        count: 0,
        keys: Vec::new(),
        values: Vec::new(),
    };
    for row in all.iter() {
        let (key, value) = row?;
        // Of an array each place is there.
        if value == [0; VALUE] {
            continue;
        }
        rows.count += 1;
        rows.keys.extend(key);
        rows.values.extend(value);
    }
    Ok(rows)
}

/// The least that there is to do: seconds to write rows into new maps.
fn write(all: &[Rows]) -> Result<f64> {
    let ebpf = open(&[], &[])?;
    let mut maps = Vec::new();
    for rows in all {
        let Some(Map::HashMap(data) | Map::Array(data)) = ebpf.map(rows.map) else {
            anyhow::bail!("no map {}", rows.map)
        };
        maps.push((data.fd().as_fd(), rows));
    }
    let begin = Instant::now();
    maps.into_iter().try_for_each(|(map, rows)| batch(map, rows))?;
    Ok(begin.elapsed().as_secs_f64())
}

#[repr(C)]
#[derive(Default)]
struct Batch {
    begin: u64,
    end: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

fn batch(map: BorrowedFd<'_>, rows: &Rows) -> Result<()> {
    const UPDATE_BATCH: i32 = 26;
    let attr = Batch {
        keys: rows.keys.as_ptr() as u64,
        values: rows.values.as_ptr() as u64,
        count: rows.count,
        map: map.as_raw_fd().try_into()?,
        ..Batch::default()
    };
    // SAFETY: both buffers hold `count` rows of this map's sizes, and outlive the call.
    let failed = unsafe { libc::syscall(libc::SYS_bpf, UPDATE_BATCH, &raw const attr, size_of::<Batch>()) };
    ensure!(
        failed == 0,
        "write {}: {}",
        rows.map,
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// Takes the samples; what a peer did not do in time is noted.
pub(crate) fn measure(services: u32, rounds: usize, samples: &mut Samples) -> Result<Vec<String>> {
    let crowd = Crowd::start(&[services])?;
    crowd.fill(services as usize, ENDPOINTS)?;
    for _ in 0..rounds {
        let [started, written] = crowd.begin_anew()?;
        samples.add(MILLRACE, STARTED, "s", started);
        samples.add(MILLRACE, WRITTEN, "s", written);
        let maps = crowd.node()?.pins().join("maps");
        let rows = [
            read::<4, 32>(&maps, "backends")?,
            read::<4, 32>(&maps, "service_slots")?,
            read::<24, 32>(&maps, "services")?,
        ];
        let expected = services as usize * ENDPOINTS;
        ensure!(
            rows[1].count as usize >= expected,
            "{} slots of {expected}",
            rows[1].count
        );
        samples.add(BARE, WRITTEN, "s", write(&rows)?);
        let lists = ["/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"];
        let took = crowd.loader()?.list(&lists)?;
        samples.add(LISTS, STARTED, "s", took.as_secs_f64());
    }
    let mut notes = Vec::new();
    for mode in Mode::ALL {
        let begin = Instant::now();
        let peer = KubeProxy::start(&crowd.lab, &crowd.control, mode)?;
        let done = peer.wait_until_programmed(PATIENCE)?;
        samples.add(mode.name(), STARTED, "s", begin.elapsed().as_secs_f64());
        if done {
            samples.add(mode.name(), WRITTEN, "s", peer.full_sync()?);
        } else {
            samples.add(mode.name(), WRITTEN, "s", begin.elapsed().as_secs_f64());
            notes.push(format!(
                "{} was not done after {} s, and was ended: its figures are lower bounds",
                mode.name(),
                PATIENCE.as_secs()
            ));
        }
    }
    Ok(notes)
}

pub(crate) fn judge(report: &mut Report, samples: &Samples) {
    let goals = [
        (WRITTEN, BARE, Some(1.0 / 3.0)),
        (WRITTEN, Mode::Nftables.name(), Some(500.0)),
        (WRITTEN, Mode::Iptables.name(), Some(30.0)),
        (STARTED, LISTS, None),
        (STARTED, Mode::Nftables.name(), Some(50.0)),
        (STARTED, Mode::Iptables.name(), None),
    ];
    for (metric, to, goal) in goals {
        // A time: less of it is better. A peer is measured once.
        let middle = |contender| samples.values(contender, metric).and_then(median);
        let value = match to {
            BARE | LISTS => samples.ratio(to, MILLRACE, metric),
            peer => middle(peer).zip(middle(MILLRACE)).map(|(peer, ours)| peer / ours),
        };
        report.ratio(metric, MILLRACE, to, value, goal);
    }
}
