#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(test, feature = "std")), no_std)]
// Atomic addition: `Racy::count`.
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics), allow(internal_features))]

pub mod abi;
pub mod datapath;
