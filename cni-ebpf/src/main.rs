//! The BPF programs. On the host there is nothing to run: the object is built for the BPF target by `cargo xtask build`
//! and embedded in the agent.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod bpf;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("millrace-bpf holds the BPF programs: build them with `cargo xtask build`");
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The build refuses an object in which this is reachable; without a loop the compiler would delete checks silently.
    loop {}
}

/// aya and the kernel want "GPL" in front for GPL-only helpers.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
