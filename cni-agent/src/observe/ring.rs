//! The ring buffer of events: the programs write it while somebody listens, and the agent reads it then.
//!
//! A program wakes nobody: waking the agent for each connection would cost the connection more than all else that is
//! done for it. The reader comes by in short intervals instead, and where nobody listens nothing is written.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use aya::maps::{Map, MapData, RingBuf};
use cni_ebpf::abi::{self, Event};
use tokio::sync::{Notify, broadcast};

use crate::kernel::{KernelError, Pins, bpf, maps};

/// Events that a slow listener may lag behind.
const BACKLOG: usize = 8192;

/// How often it is looked whether the ring exists yet, or is another one.
const LOOK: Duration = Duration::from_secs(2);

/// How often it is read: a person waits no longer, and the default ring holds what comes meanwhile.
const PACE: Duration = Duration::from_millis(20);

/// The ring below the pins, and who listens. It has one reader, the agent; commands listen through its admin socket.
#[derive(Debug)]
pub struct Ring {
    pins: Pins,
    listeners: broadcast::Sender<Event>,
    arrived: Notify,
    /// Held while listeners are counted and the programs told.
    told: Mutex<()>,
}

impl Ring {
    pub fn new(pins: Pins) -> Self {
        Self {
            pins,
            listeners: broadcast::channel(BACKLOG).0,
            arrived: Notify::new(),
            told: Mutex::new(()),
        }
    }

    /// Events from now on.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = self.listeners.subscribe();
        self.tell(true);
        drop(told);
        self.arrived.notify_one();
        receiver
    }

    /// Reads for ever.
    pub async fn read(&self) {
        // An agent that died while somebody listened has left the programs telling, and what they told since.
        if self.rests()
            && let Ok(Some((_, mut ring))) = self.open()
        {
            self.pass_on(&mut ring);
        }
        loop {
            while self.listeners.receiver_count() > 0 {
                match self.open() {
                    Ok(Some((id, ring))) => self.drain(id, ring).await,
                    // The maps are made when every source has spoken.
                    Ok(None) => tokio::time::sleep(LOOK).await,
                    Err(error) => {
                        tracing::warn!(%error, "events cannot be read; trying again");
                        tokio::time::sleep(LOOK).await;
                    }
                }
            }
            self.arrived.notified().await;
        }
    }

    /// Until nobody listens, or the ring at this place is another one.
    async fn drain(&self, opened: u32, mut ring: RingBuf<MapData>) {
        self.tell(true);
        let mut looked = Instant::now();
        while !self.rests() {
            self.pass_on(&mut ring);
            if looked.elapsed() > LOOK {
                if self.id() != Some(opened) {
                    return;
                }
                looked = Instant::now();
            }
            tokio::time::sleep(PACE).await;
        }
        // What came last has nobody to go to, and must not be the first that the next one hears.
        self.pass_on(&mut ring);
    }

    fn pass_on(&self, ring: &mut RingBuf<MapData>) {
        while let Some(item) = ring.next() {
            if let Some(event) = abi::from_bytes::<Event>(&item) {
                // An error means that nobody listens.
                let _ = self.listeners.send(event);
            }
        }
    }

    /// Has the programs write nothing if nobody listens.
    fn rests(&self) -> bool {
        let _told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let nobody = self.listeners.receiver_count() == 0;
        if nobody {
            self.tell(false);
        }
        nobody
    }

    /// Without a map there are no programs, and they are told when it is opened.
    fn tell(&self, listened: bool) {
        let map = maps::spec("listeners").and_then(|spec| maps::open(&self.pins, spec));
        let told = map.and_then(|map| match map {
            Some(map) => map.put(&0u32.to_ne_bytes(), &u32::from(listened).to_ne_bytes()),
            None => Ok(()),
        });
        if let Err(error) = told {
            tracing::warn!(%error, listened, "the programs cannot be told whether to tell events");
        }
    }

    fn id(&self) -> Option<u32> {
        let spec = maps::spec("events").ok()?;
        let map = bpf::get(&self.pins.map(spec)).ok()?;
        bpf::map_info(&map).ok().map(|info| info.id)
    }

    fn open(&self) -> Result<Option<(u32, RingBuf<MapData>)>, KernelError> {
        let spec = maps::spec("events")?;
        let Some(id) = self.id() else { return Ok(None) };
        let error =
            |error: &dyn std::fmt::Display| KernelError::new("open the event ring", error.to_string());
        let data = MapData::from_pin(self.pins.map(spec)).map_err(|e| error(&e))?;
        let map = Map::from_map_data(data).map_err(|e| error(&e))?;
        let ring = RingBuf::try_from(map).map_err(|e| error(&e))?;
        Ok(Some((id, ring)))
    }
}
