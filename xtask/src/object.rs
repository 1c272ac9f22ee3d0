//! What must hold of the BPF object before anything embeds it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol};

/// The ring of aya-log. Whatever logs, in whichever program, has it.
const MESSAGES: &str = "AYA_LOGS";

/// Reads the object and refuses one that the kernel would refuse, that lost its BTF, or whose programs log where none should
/// (it would cost instructions in every packet) or do not where they should.
pub(crate) fn check(path: &Path, logs: bool) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let faults = faults(&bytes, logs).with_context(|| format!("{} is not an object file", path.display()))?;
    if faults.is_empty() {
        return Ok(());
    }
    bail!(
        "{} is not fit to be loaded:\n  {}",
        path.display(),
        faults.join("\n  ")
    )
}

fn faults(bytes: &[u8], logs: bool) -> Result<Vec<String>> {
    let file = object::File::parse(bytes)?;
    let mut faults = Vec::new();
    match (file.symbol_by_name(MESSAGES).is_some(), logs) {
        (true, false) => faults.push(format!(
            "map `{MESSAGES}`: programs log; keep it behind the feature `debug-log`"
        )),
        (false, true) => faults.push(format!("no map `{MESSAGES}`: programs built to log do not")),
        _ => {}
    }
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
    use object::write::{Object as Writer, StandardSection, Symbol, SymbolSection};
    use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};

    /// A BPF object with one symbol, defined or not, and BTF of some length.
    fn with(name: &str, is_defined: bool, btf: &[u8]) -> Vec<u8> {
        let mut object = Writer::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        let text = object.section_id(StandardSection::Text);
        let section = if is_defined {
            SymbolSection::Section(text)
        } else {
            SymbolSection::Undefined
        };
        object.add_symbol(Symbol {
            name: name.into(),
            value: 0,
            size: 0,
            kind: SymbolKind::Text,
            scope: SymbolScope::Linkage,
            weak: false,
            section,
            flags: SymbolFlags::None,
        });
        let section = object.add_section(Vec::new(), b".BTF".to_vec(), SectionKind::Debug);
        object.append_section_data(section, btf, 4);
        object.write().unwrap()
    }

    #[test]
    fn a_sound_object_passes() {
        assert_eq!(faults(&with("from_pod", true, b"btf"), false).unwrap(), [""; 0]);
        assert_eq!(faults(&with(MESSAGES, true, b"btf"), true).unwrap(), [""; 0]);
    }

    #[test]
    fn undefined_symbols_panics_and_missing_btf_are_refused() {
        let panic = "_ZN4core9panicking18panic_bounds_check17h0123456789abcdefE";
        let objects = [
            (
                with("memset_of_somewhere", false, b"btf"),
                "undefined symbol `memset_of_somewhere`",
            ),
            (with(panic, true, b"btf"), "bounds or overflow check can panic"),
            (with("from_pod", true, b""), "no BTF"),
        ];
        for (object, expected) in objects {
            let faults = faults(&object, false).unwrap();
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].contains(expected), "{faults:?}");
        }
    }

    #[test]
    fn programs_log_where_they_are_asked_to_and_nowhere_else() {
        for (name, logs, expected) in [
            (MESSAGES, false, "programs log"),
            ("from_pod", true, "built to log do not"),
        ] {
            let faults = faults(&with(name, true, b"btf"), logs).unwrap();
            assert!(faults.len() == 1 && faults[0].contains(expected), "{faults:?}");
        }
    }

    #[test]
    fn a_text_file_is_no_object() {
        assert!(faults(b"text", false).is_err());
    }
}
