//! The folder of a run.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::arm::ArmStore;
use crate::error::StoreError;
use crate::files::{atomic_write, check_space, check_writable, nearest_existing, write_json};

/// The folder of a run, made whole or not at all.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// The experiment, every default written out; each arm gets a copy.
    toml: String,
    /// The folders above it that were made for it, the innermost first.
    made: Vec<PathBuf>,
}

impl RunDir {
    /// Checks whether the run can be written, before anything expensive starts. It leaves nothing
    /// behind.
    ///
    /// # Errors
    /// If the name is not allowed or taken, or the place is not a folder, cannot be written to or has
    /// less than `needed_bytes` free.
    pub fn check(root: &Path, name: &str, needed_bytes: u64) -> Result<(), StoreError> {
        check_run_name(name)?;
        let path = root.join(name);
        // A dangling link is in the way as well.
        if path.symlink_metadata().is_ok() {
            return Err(StoreError::Exists { name: name.to_owned(), path });
        }
        let existing = nearest_existing(root);
        if !existing.is_dir() {
            return Err(StoreError::NotAFolder(existing));
        }
        check_writable(&existing)?;
        check_space(&existing, needed_bytes)
    }

    /// Checks again and makes the folder, with the experiment in it.
    ///
    /// # Errors
    /// As [`RunDir::check`], and if the folder cannot be made; nothing is left then.
    pub fn create(root: &Path, name: &str, toml: &str, needed_bytes: u64) -> Result<RunDir, StoreError> {
        RunDir::check(root, name, needed_bytes)?;
        let made = root.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let made: Vec<PathBuf> = made.map(Path::to_path_buf).collect();
        let path = root.join(name);
        let folder = fs::create_dir_all(root)
            .map_err(|cause| StoreError::io("make the folder", root, cause))
            // This, unlike the check, cannot succeed for two processes at once.
            .and_then(|()| {
                fs::create_dir(&path).map_err(|cause| match cause.kind() {
                    ErrorKind::AlreadyExists => {
                        StoreError::Exists { name: name.to_owned(), path: path.clone() }
                    }
                    _ => StoreError::io("make the folder", &path, cause),
                })
            });
        if let Err(error) = folder {
            remove_empty(&made);
            return Err(error);
        }
        let run = RunDir { path, toml: toml.to_owned(), made };
        match atomic_write(&run.path.join("experiment.toml"), toml.as_bytes()) {
            Ok(()) => Ok(run),
            Err(error) => {
                // The first error says more than one of the clearing up.
                let _ = run.remove();
                Err(error)
            }
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder of an arm and seed, with the experiment in it.
    ///
    /// # Errors
    /// If the name is not allowed, or taken for this seed, or the folder cannot be made; nothing of it
    /// is left then.
    pub fn arm(&self, arm: &str, seed: u64) -> Result<ArmStore, StoreError> {
        check_arm_name(arm)?;
        let above = self.path.join(arm);
        fs::create_dir_all(&above).map_err(|cause| StoreError::io("make the folder", &above, cause))?;
        let path = above.join(seed.to_string());
        let result = match fs::create_dir(&path) {
            Ok(()) => ArmStore::create(path.clone(), arm, seed, &self.toml).inspect_err(|_| {
                let _ = fs::remove_dir_all(&path);
            }),
            Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {
                Err(StoreError::ArmExists { arm: arm.to_owned(), seed, path })
            }
            Err(cause) => Err(StoreError::io("make the folder", &path, cause)),
        };
        result.inspect_err(|_| remove_empty(&[above]))
    }

    /// Writes what came of the run.
    ///
    /// # Errors
    /// If the file cannot be written; an earlier one stays.
    pub fn write_summary(&self, summary: &serde_json::Value) -> Result<(), StoreError> {
        write_json(&self.path.join("summary.json"), summary)
    }

    /// Removes a run that could not start, and the folders above it that were made for it, unless something else is in
    /// them by now.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn remove(self) -> Result<(), StoreError> {
        fs::remove_dir_all(&self.path).map_err(|cause| StoreError::io("remove", &self.path, cause))?;
        remove_empty(&self.made);
        Ok(())
    }
}

/// Checks that a run may have this name.
///
/// # Errors
/// [`StoreError::RunName`].
pub fn check_run_name(name: &str) -> Result<(), StoreError> {
    if is_allowed(name) { Ok(()) } else { Err(StoreError::RunName(name.to_owned())) }
}

/// Checks that an arm may have this name.
///
/// # Errors
/// [`StoreError::ArmName`].
pub fn check_arm_name(name: &str) -> Result<(), StoreError> {
    if is_allowed(name) && !["experiment.toml", "summary.json"].contains(&name) {
        Ok(())
    } else {
        Err(StoreError::ArmName(name.to_owned()))
    }
}

/// True for names that a folder can have on every system, and that are neither hidden nor look like an option.
fn is_allowed(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Removes folders that are empty. The others stay, since somebody uses them.
fn remove_empty(folders: &[PathBuf]) {
    for folder in folders {
        let _ = fs::remove_dir(folder);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn root() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    fn is_empty(folder: &Path) -> bool {
        fs::read_dir(folder).expect("it is there").next().is_none()
    }

    #[test]
    fn a_run_has_its_experiment_its_arms_and_its_summary() {
        let root = root();
        let runs = root.path().join("deep/runs");
        RunDir::check(&runs, "demo", 1000).expect("there is room");
        assert!(is_empty(root.path()));
        let run = RunDir::create(&runs, "demo", "name = \"demo\"\n", 1000).expect("there is room");
        assert_eq!(run.path(), runs.join("demo"));
        let arm = run.arm("dpo", 3).expect("it can be made");
        assert_eq!(arm.checkpoints(), runs.join("demo/dpo/3/checkpoints"));
        assert!(arm.checkpoints().is_dir());
        for path in ["demo/experiment.toml", "demo/dpo/3/experiment.toml"] {
            assert_eq!(fs::read_to_string(runs.join(path)).expect("it is there"), "name = \"demo\"\n");
        }
        run.write_summary(&json!({"reward": 0.5})).expect("it can be written");
        assert_eq!(
            fs::read_to_string(runs.join("demo/summary.json")).expect("it is there"),
            "{\n  \"reward\": 0.5\n}\n"
        );
        drop(arm);
        run.remove().expect("it can be removed");
        assert!(is_empty(root.path()));
    }

    #[test]
    fn names_are_those_of_folders() {
        let longest = "a".repeat(100);
        for name in ["a", "A-b_c.9", "_", longest.as_str()] {
            assert!(is_allowed(name), "{name}");
        }
        let longer = "a".repeat(101);
        for name in ["", ".", "..", ".a", "-a", "a b", "a/b", "a\\b", "é", "a\n", longer.as_str()] {
            assert!(!is_allowed(name), "{name}");
        }
        let root = root();
        let error = RunDir::check(root.path(), "a b", 0).expect_err("it has a space");
        assert_eq!(
            error.to_string(),
            "the run name \"a b\" is not allowed: use 1 to 100 of the characters A-Z a-z 0-9 . _ - and do \
             not start with . or -; choose another with --set name=NAME"
        );
        let run = RunDir::create(root.path(), "demo", "", 0).expect("there is room");
        for name in ["../a", "summary.json", "experiment.toml"] {
            assert_eq!(
                run.arm(name, 0).expect_err("it is not allowed").to_string(),
                format!(
                    "the arm name \"{name}\" is not allowed: use 1 to 100 of the characters A-Z a-z 0-9 . _ \
                     - and do not start with . or -, nor call it experiment.toml or summary.json; rename the \
                     arm in the experiment"
                )
            );
        }
    }

    #[test]
    fn a_taken_name_is_refused_and_kept() {
        let root = root();
        let run = RunDir::create(root.path(), "demo", "a = 1", 0).expect("there is room");
        let arm = run.arm("dpo", 3).expect("it can be made");
        let expected = format!(
            "the run \"demo\" exists already in {}; choose another name with --set name=NAME, or remove that \
             folder",
            run.path().display()
        );
        let error = RunDir::check(root.path(), "demo", 0).expect_err("it is taken");
        assert_eq!(error.to_string(), expected);
        let error = RunDir::create(root.path(), "demo", "a = 2", 0).expect_err("it is taken");
        assert_eq!(error.to_string(), expected);
        assert_eq!(
            run.arm("dpo", 3).expect_err("it is taken").to_string(),
            format!(
                "the arm \"dpo\" with seed 3 exists already in {}/dpo/3; give every arm a name of its own, \
                 and name every seed once",
                run.path().display()
            )
        );
        assert_eq!(fs::read_to_string(run.path().join("experiment.toml")).expect("it is there"), "a = 1");
        assert!(arm.checkpoints().is_dir());
    }

    #[test]
    fn a_file_is_no_place_for_runs() {
        let root = root();
        let file = root.path().join("runs");
        fs::write(&file, "x").expect("it can be written");
        let expected =
            format!("{} is not a folder; choose another place for the runs with --runs DIR", file.display());
        for place in [file.clone(), file.join("below")] {
            let error = RunDir::check(&place, "demo", 0).expect_err("it is a file");
            assert_eq!(error.to_string(), expected);
            let error = RunDir::create(&place, "demo", "", 0).expect_err("it is a file");
            assert_eq!(error.to_string(), expected);
        }
        assert_eq!(fs::read(&file).expect("it is there"), b"x");
        assert_eq!(fs::read_dir(root.path()).expect("it is there").count(), 1);
    }

    #[test]
    fn a_disk_without_room_is_no_place_for_runs() {
        let root = root();
        let runs = root.path().join("runs");
        let error = RunDir::create(&runs, "demo", "", u64::MAX).expect_err("no disk is as large");
        let StoreError::DiskFull { path, needed: u64::MAX, .. } = &error else {
            panic!("another error: {error}");
        };
        assert_eq!(path, root.path());
        let text = error.to_string();
        assert!(text.contains("MB free and the run needs 18446744073710 MB; free some space"), "{text}");
        assert!(is_empty(root.path()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_cannot_be_written_to_is_no_place_for_runs() {
        // Not even root can make files in these.
        let places = [("/proc/runs", "/proc"), ("/sys/runs", "/sys"), ("/sys", "/sys")];
        for (place, existing) in places.into_iter().filter(|(_, existing)| Path::new(existing).is_dir()) {
            let error = RunDir::create(Path::new(place), "demo", "", 0).expect_err("it is read-only");
            assert!(matches!(error, StoreError::ReadOnly { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.starts_with(&format!("{existing} cannot be written to: ")), "{text}");
            assert!(
                text.ends_with("allow it, or choose another place for the runs with --runs DIR"),
                "{text}"
            );
        }
    }

    #[test]
    fn an_arm_that_cannot_be_made_leaves_nothing() {
        let root = root();
        let run = RunDir::create(root.path(), "demo", "", 0).expect("there is room");
        // A file where the arm's folder should be.
        fs::write(run.path().join("dpo"), "x").expect("it can be written");
        let text = run.arm("dpo", 0).expect_err("there is a file").to_string();
        assert!(
            text.starts_with(&format!("could not make the folder {}/dpo: ", run.path().display())),
            "{text}"
        );
        assert_eq!(fs::read_dir(run.path()).expect("it is there").count(), 2);
    }
}
