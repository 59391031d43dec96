//! The last good copy: the text of the last file that was taken, so that a daemon that starts
//! with a file it cannot read still knows what to enforce.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{Config, ConfigError, Loaded};

/// Where the daemon keeps its state by default.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/netd";

const NAME: &str = "last-good.toml";

/// Why the copy could not be written.
#[derive(Debug, Error)]
#[error("cannot {step} {}: {source}; the configuration is in force, but a start without a valid \
         file would find an older copy; check space and permissions", .path.display())]
pub struct SaveError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The copy's path in a state directory.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(NAME)
}

/// Replaces the copy by `text`, readable by its owner only. Whoever reads it, also after a power
/// failure, finds the old text or the new one, never a part. The directory is made if need be.
///
/// # Errors
/// [`SaveError`] names the step that failed; the old copy is then still there.
pub fn save(state_dir: &Path, text: &str) -> Result<(), SaveError> {
    let path = path(state_dir);
    // Of this process, so that two of them do not write into one file.
    let temporary = state_dir.join(format!(".{NAME}.{}", std::process::id()));
    let failed = |step, path: &Path| {
        let path = path.to_owned();
        move |source| SaveError { step, path, source }
    };
    fs::create_dir_all(state_dir).map_err(failed("make the directory", state_dir))?;
    let written = write(&temporary, text).map_err(failed("write", &temporary));
    let renamed =
        written.and_then(|()| fs::rename(&temporary, &path).map_err(failed("replace", &path)));
    if renamed.is_err() {
        // What failed may be the file itself; a second error would say nothing new.
        let _ = fs::remove_file(&temporary);
    }
    renamed?;
    // The rename is durable only with its directory.
    let directory = File::open(state_dir).and_then(|directory| directory.sync_all());
    directory.map_err(failed("make durable", state_dir))
}

fn write(temporary: &Path, text: &str) -> io::Result<()> {
    // Left behind by a process that had the same id and died here.
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Reads and validates the copy; `None` if there is none.
///
/// # Errors
/// As [`Config::load`]: a copy of an older netd may not be valid for this one.
pub fn load(state_dir: &Path) -> Result<Option<Loaded>, ConfigError> {
    match Config::load(&path(state_dir)) {
        Ok(loaded) => Ok(Some(loaded)),
        Err(ConfigError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn saved_text_is_loaded_and_replaced() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("not/yet");
        assert!(load(&state).unwrap().is_none());
        for text in ["version = 1\n", "version = 1 # newer\n"] {
            save(&state, text).unwrap();
            assert_eq!(load(&state).unwrap().unwrap().text, text);
        }
        let mode = fs::metadata(path(&state)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let names: Vec<_> = fs::read_dir(&state)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, [NAME], "nothing else is left");
    }

    #[test]
    fn a_failure_keeps_the_old_copy_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        // A directory in the copy's place: the rename fails after the text was written.
        fs::create_dir_all(path(root.path()).join("full")).unwrap();
        let error = save(root.path(), "version = 1\n").unwrap_err();
        assert!(error.to_string().starts_with("cannot replace "), "{error}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);

        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let error = save(&file, "version = 1\n").unwrap_err();
        assert!(
            error.to_string().starts_with("cannot make the directory "),
            "{error}"
        );
    }

    #[test]
    fn a_remainder_of_a_dead_process_is_no_obstacle() {
        let root = tempfile::tempdir().unwrap();
        let remainder = root.path().join(format!(".{NAME}.{}", std::process::id()));
        fs::write(remainder, "half").unwrap();
        save(root.path(), "version = 1\n").unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_invalid_copy_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        save(root.path(), "version = 2\n").unwrap();
        let error = load(root.path()).unwrap_err();
        assert_eq!(error.diagnostics()[0].line, 1);
    }
}
