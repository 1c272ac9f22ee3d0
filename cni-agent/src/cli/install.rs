//! `millrace install`: the CNI plugin, from the image onto the host.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use clap::Args;

use super::{Context, Failure, Outcome, print_json};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where the CNI plugin is installed
    #[arg(long, value_name = "FILE", default_value = "/opt/cni/bin/millrace-cni")]
    cni_plugin: PathBuf,
    /// The plugin to install, instead of the one beside this program
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
}

/// For everybody to run, with nobody's rights but their own.
const MODE: u32 = 0o755;

pub(crate) fn run(context: &Context, options: &Options) -> Outcome {
    let from = match &options.from {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("millrace-cni"),
    };
    let done = install(&from, &options.cni_plugin)?;
    let path = options.cni_plugin.display();
    if context.json {
        print_json(
            &serde_json::json!({"path": options.cni_plugin, "changed": done.changed, "version": done.version}),
        )?;
    } else if done.changed {
        writeln!(io::stdout(), "installed {path}: {}", done.version)?;
    } else {
        writeln!(io::stdout(), "{path} is there already: {}", done.version)?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug)]
struct Done {
    changed: bool,
    /// As the plugin says it.
    version: String,
}

fn install(from: &Path, to: &Path) -> Result<Done, Failure> {
    let program = fs::read(from).map_err(|error| format!("read the plugin {}: {error}", from.display()))?;
    let (Some(folder), Some(name)) = (to.parent(), to.file_name()) else {
        return Err(format!("--cni-plugin: {} names no file", to.display()).into());
    };
    collect(folder, name.as_encoded_bytes());
    let is_there = fs::symlink_metadata(to)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o7777 == MODE)
        && fs::read(to).is_ok_and(|found| found == program);
    if is_there {
        return Ok(Done {
            changed: false,
            version: version(to)?,
        });
    }
    let aside = folder.join(format!(".{}.{}{UNFINISHED}", name.display(), std::process::id()));
    let result = write(&aside, &program)
        .map_err(|error| {
            format!(
                "write {}: {error}; mount the host's folder of CNI plugins there, writable, or name another one by \
                 --cni-plugin",
                aside.display()
            )
            .into()
        })
        .and_then(|()| version(&aside))
        .and_then(|version| {
            put(&aside, to).map_err(|error| format!("rename to {}: {error}", to.display()))?;
            Ok(version)
        });
    if result.is_err() {
        // The error is what counts; what is left is found by the next installation.
        let _ = fs::remove_file(&aside);
    }
    Ok(Done {
        changed: true,
        version: result?,
    })
}

const UNFINISHED: &str = ".unfinished";

/// What an installation left that was cut short. Another that runs at this moment fails and is tried again.
fn collect(folder: &Path, name: &[u8]) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let file = entry.file_name();
        let file = file.as_encoded_bytes();
        let is_ours = file.strip_prefix(b".").is_some_and(|file| file.starts_with(name));
        if is_ours && file.ends_with(UNFINISHED.as_bytes()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn write(path: &Path, program: &[u8]) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(path)?;
    file.write_all(program)?;
    // Whatever this process's umask is.
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.sync_all()
}

/// A file that is being executed cannot be written to, but its name can be given to another.
fn put(aside: &Path, to: &Path) -> io::Result<()> {
    fs::rename(aside, to)?;
    to.parent()
        .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Lets the program speak where it will be run: a file system that forbids that, or a foreign processor, is seen before
/// the working plugin is replaced.
fn version(program: &Path) -> Result<String, Failure> {
    let said = Command::new(program)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            format!(
                "run {}: {error}; is its file system mounted noexec, or is the image for another processor?",
                program.display()
            )
        })?;
    let text = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    if !said.status.success() || text.is_empty() {
        let complaint = String::from_utf8_lossy(&said.stderr);
        return Err(format!(
            "`{} --version` ended with {}: {}",
            program.display(),
            said.status,
            complaint.trim()
        )
        .into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Two different programs that say something to `--version`.
    const PROGRAMS: [&str; 2] = ["/bin/sleep", "/bin/cat"];

    /// A program cannot be executed while a child of another test, not yet become its own program, holds it open.
    static ALONE: Mutex<()> = Mutex::new(());

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_plugin_that_runs_is_replaced_by_another() {
        let _alone = ALONE.lock();
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("millrace-cni");
        assert!(install(Path::new(PROGRAMS[0]), &to).unwrap().changed);
        let mut running = Command::new(&to).arg("60").spawn().unwrap();
        let done = install(Path::new(PROGRAMS[1]), &to).unwrap();
        assert!(done.changed && done.version.contains("cat"), "{done:?}");
        assert!(running.try_wait().unwrap().is_none());
        running.kill().unwrap();
        running.wait().unwrap();
        assert_eq!(fs::read(&to).unwrap(), fs::read(PROGRAMS[1]).unwrap());
        assert_eq!(names(folder.path()), ["millrace-cni"]);
    }

    #[test]
    fn rel_20_the_plugin_has_no_rights_of_its_own() {
        let _alone = ALONE.lock();
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("millrace-cni");
        install(Path::new(PROGRAMS[0]), &to).unwrap();
        assert_eq!(mode(&to), 0o755);
        assert!(!install(Path::new(PROGRAMS[0]), &to).unwrap().changed);
        // What somebody else made of it does not stay.
        fs::set_permissions(&to, Permissions::from_mode(0o4755)).unwrap();
        assert!(install(Path::new(PROGRAMS[0]), &to).unwrap().changed);
        assert_eq!(mode(&to), 0o755);
    }

    #[test]
    fn what_does_not_run_replaces_nothing() {
        let _alone = ALONE.lock();
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("millrace-cni");
        install(Path::new(PROGRAMS[0]), &to).unwrap();
        fs::write(folder.path().join(".millrace-cni.1.unfinished"), "cut short").unwrap();
        let broken = folder.path().join("broken");
        fs::write(&broken, "\x7fELF and nothing else").unwrap();
        let error = install(&broken, &to).unwrap_err().to_string();
        assert!(error.contains("another processor"), "{error}");
        assert_eq!(fs::read(&to).unwrap(), fs::read(PROGRAMS[0]).unwrap());
        let mut left = names(folder.path());
        left.sort();
        assert_eq!(left, ["broken", "millrace-cni"]);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = install(Path::new(PROGRAMS[0]), Path::new("/no/such/folder/millrace-cni")).unwrap_err();
        assert!(error.to_string().contains("--cni-plugin"), "{error}");
    }
}
