//! Reads the ring buffer of events and hands them to whoever listens.

use std::{io, time::Duration};

use aya::maps::{Map, MapData, RingBuf};
use cni_ebpf::abi::{self, Event};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::broadcast,
};

use crate::kernel::{KernelError, Pins, bpf, maps};

/// Events that a slow listener may lag behind.
const BACKLOG: usize = 8192;

/// How often it is looked whether the ring exists yet, or is another one.
const LOOK: Duration = Duration::from_secs(2);

/// A place to listen at.
pub fn channel() -> broadcast::Sender<Event> {
    broadcast::channel(BACKLOG).0
}

/// Reads for ever. The ring has one reader, the agent; commands listen through its admin socket.
pub async fn read(pins: Pins, listeners: broadcast::Sender<Event>) {
    loop {
        match open(&pins) {
            Ok(Some((id, ring))) => {
                if let Err(error) = drain(&pins, id, ring, &listeners).await {
                    tracing::warn!(%error, "reading the event ring failed; it is opened again");
                }
            }
            // The maps are made when every source has spoken.
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "events cannot be read; trying again"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn id(pins: &Pins) -> Option<u32> {
    let spec = maps::spec("events").ok()?;
    let map = bpf::get(&pins.map(spec)).ok()?;
    bpf::map_info(&map).ok().map(|info| info.id)
}

fn open(pins: &Pins) -> Result<Option<(u32, RingBuf<MapData>)>, KernelError> {
    let spec = maps::spec("events")?;
    let Some(id) = id(pins) else { return Ok(None) };
    let error = |error: &dyn std::fmt::Display| KernelError::new("open the event ring", error.to_string());
    let data = MapData::from_pin(pins.map(spec)).map_err(|e| error(&e))?;
    let map = Map::from_map_data(data).map_err(|e| error(&e))?;
    let ring = RingBuf::try_from(map).map_err(|e| error(&e))?;
    Ok(Some((id, ring)))
}

/// Until the ring at this place is another one.
async fn drain(
    pins: &Pins,
    opened: u32,
    ring: RingBuf<MapData>,
    listeners: &broadcast::Sender<Event>,
) -> io::Result<()> {
    // SAFETY: the ring owns its descriptor and moves into the `AsyncFd`, which outlives its registration.
    let mut ring =
        unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(io::Error::other)?;
    loop {
        tokio::select! {
            guard = ring.readable_mut() => {
                let mut guard = guard?;
                // Nothing is lost by clearing first: what comes now makes the descriptor readable again.
                guard.clear_ready();
                while let Some(item) = guard.get_inner_mut().next() {
                    if let Some(event) = abi::from_bytes::<Event>(&item) {
                        // An error means that nobody listens.
                        let _ = listeners.send(event);
                    }
                }
            }
            () = tokio::time::sleep(LOOK) => {
                if id(pins) != Some(opened) {
                    return Ok(());
                }
            }
        }
    }
}
