//! The kernel's side of the datapath: maps, packets, programs.

mod maps;
mod packet;
mod programs;
mod stages;
mod tables;
