//! What must hold of the BPF object before anything embeds it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol};

/// Reads the object and refuses one that the kernel would refuse, or that lost its BTF.
pub(crate) fn check(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let faults = faults(&bytes).with_context(|| format!("{} is not an object file", path.display()))?;
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{} cannot be loaded:\n  {}", path.display(), faults.join("\n  "))
}

fn faults(bytes: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(bytes)?;
    let mut faults = Vec::new();
    if file.section_by_name(".BTF").is_none_or(|btf| btf.size() == 0) {
        faults.push("no BTF: the linker must be given --btf, and the strip step must keep it".to_owned());
    }
    for symbol in file.symbols() {
        let name = symbol.name().unwrap_or("(a name that is not UTF-8)");
        if symbol.is_undefined() && !name.is_empty() {
            faults.push(format!(
                "undefined symbol `{name}`: BPF has no library to link it from"
            ));
        }
        if panics(name) {
            faults.push(format!(
                "symbol `{name}`: a bounds or overflow check can panic; use `.get()` or a mask"
            ));
        }
    }
    for section in file.sections() {
        let name = section.name().unwrap_or_default();
        if panics(name) {
            faults.push(format!("section `{name}`: code for a panic is linked in"));
        }
    }
    Ok(faults)
}

/// A panic handler that never returns lets the compiler keep its call: the verifier's message about it says nothing.
fn panics(name: &str) -> bool {
    name.contains("panicking")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_machinery_is_known_by_name() {
        assert!(panics(
            "_ZN4core9panicking18panic_bounds_check17h0123456789abcdefE"
        ));
        assert!(!panics("from_pod"));
    }

    #[test]
    fn an_object_without_btf_is_refused_and_a_text_file_is_no_object() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(
            faults(&own)
                .unwrap()
                .iter()
                .any(|fault| fault.starts_with("no BTF"))
        );
        assert!(faults(b"text").is_err());
    }
}
