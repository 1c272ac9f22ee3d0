//! The kernel's side of the datapath: maps, packets, programs.

#[cfg(feature = "bench")]
mod bench;
mod frame;
mod handover;
mod kernel;
mod link_header;
mod maps;
mod packet;
mod programs;
mod sockets;
mod stages;
mod tables;
