//! Confines the server to the files it needs, once it has opened everything: landlock(7), if the
//! kernel has it. Open files stay open; sockets are not restricted.
//!
//! The directories of the files are allowed, not the files: a file that another program replaces
//! is a new one.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::sys::{
    self, LANDLOCK_ACCESS_FS_MAKE_REG as MAKE_REG, LANDLOCK_ACCESS_FS_READ_DIR as READ_DIR,
    LANDLOCK_ACCESS_FS_READ_FILE as READ_FILE, LANDLOCK_ACCESS_FS_REMOVE_FILE as REMOVE_FILE,
    LANDLOCK_ACCESS_FS_WRITE_FILE as WRITE_FILE,
};

/// Files that name look-ups read; some may be links to other directories.
const LOOK_UPS: [&str; 5] =
    ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf"];

/// Directories of the modules that glibc loads for a look-up, and of the number of processors,
/// which the C library and std read.
const LIBRARIES: [&str; 6] =
    ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/sys/fs/cgroup"];

/// Whether the server is confined; Display gives the word for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// Confined.
    On,
    /// Not confined, by an option or after an error.
    Off,
    /// Not supported by the kernel.
    Absent,
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Absent => "absent",
        })
    }
}

/// The files that the server may open or remove later.
#[derive(Debug, Default)]
pub struct Files<'a> {
    /// Rules, lists and users, read at a reload.
    pub read: Vec<&'a Path>,
    /// The log, created and written at a reload.
    pub log: Option<&'a Path>,
    /// UNIX sockets and the file with the process ID, checked and removed at the end.
    pub removed: Vec<&'a Path>,
}

/// Confines this thread, and those it starts from now on, to `files` and what name look-ups need.
///
/// # Errors
/// As the calls of landlock(7), if the kernel has them. Nothing is confined then.
pub fn confine(files: &Files<'_>) -> io::Result<Confinement> {
    let Ok(version) = sys::landlock_version() else { return Ok(Confinement::Absent) };
    let ruleset = sys::landlock_create_ruleset(handled(version))?;
    let allow = |place: &Path, access| {
        // A place that is missing or cannot be opened stays forbidden.
        let place = OpenOptions::new().read(true).custom_flags(sys::O_PATH).open(place);
        let _ = place.and_then(|place| sys::landlock_add_path(&ruleset, access, &place));
    };
    let to_read = LOOK_UPS.iter().map(Path::new).chain(files.read.iter().copied());
    let mut to_read: Vec<PathBuf> = to_read.flat_map(places).collect();
    // Most are in /etc, and each costs the start three system calls.
    to_read.dedup();
    to_read.iter().for_each(|place| allow(place, READ_FILE));
    LIBRARIES.iter().for_each(|place| allow(Path::new(place), READ_FILE));
    allow(Path::new("/proc/self"), READ_FILE | READ_DIR);
    allow(Path::new("/dev/null"), READ_FILE | WRITE_FILE);
    for place in files.log.into_iter().flat_map(places) {
        let make = if place.is_dir() { MAKE_REG } else { 0 };
        allow(&place, WRITE_FILE | make);
    }
    files.removed.iter().for_each(|path| allow(&directory(path), READ_FILE | REMOVE_FILE));
    sys::landlock_restrict_self(&ruleset)?;
    Ok(Confinement::On)
}

/// All kinds of access to files that a version of Landlock can forbid.
fn handled(version: i32) -> u64 {
    let count = match version {
        ..=1 => 13,
        // LANDLOCK_ACCESS_FS_REFER
        2 => 14,
        // LANDLOCK_ACCESS_FS_TRUNCATE
        3 | 4 => 15,
        // LANDLOCK_ACCESS_FS_IOCTL_DEV
        5.. => 16,
    };
    (1 << count) - 1
}

/// The directory of `path` and, if that is a link, the one of the file it leads to. A device or a
/// FIFO stands for itself: it is not replaced.
fn places(path: &Path) -> Vec<PathBuf> {
    let is_special = fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
    if is_special {
        return vec![path.to_owned()];
    }
    let real = fs::canonicalize(path).ok();
    [Some(path), real.as_deref()].into_iter().flatten().map(directory).collect()
}

fn directory(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_version_of_landlock_is_asked_for_unknown_accesses() {
        assert_eq!(
            [1, 2, 3, 4, 5, 99].map(|version| handled(version).count_ones()),
            [13, 14, 15, 15, 16, 16]
        );
    }

    #[test]
    fn a_file_stands_for_its_directories_and_a_device_for_itself() {
        assert_eq!(places(Path::new("/etc/passwd")), [Path::new("/etc"), Path::new("/etc")]);
        assert_eq!(places(Path::new("nonexistent")), [Path::new(".")]);
        assert_eq!(places(Path::new("/proc/self/comm")).len(), 2);
        assert_eq!(places(Path::new("/dev/null")), [Path::new("/dev/null")]);
    }

    #[test]
    fn a_confined_thread_has_only_the_accesses_it_needs() {
        let directory =
            std::env::temp_dir().join(format!("socksd-landlock-{}", std::process::id()));
        fs::create_dir_all(directory.join("other")).unwrap();
        fs::create_dir_all(directory.join("log")).unwrap();
        fs::create_dir_all(directory.join("rules")).unwrap();
        let at = |name: &str| directory.join(name);
        for name in ["rules/a", "rules/b", "other/a", "log/a"] {
            fs::write(at(name), name).unwrap();
        }
        let (rules, log) = (at("rules/a"), at("log/a"));
        let files = Files { read: vec![&rules], log: Some(&log), removed: vec![&rules] };
        let confined = std::thread::scope(|scope| {
            let confined = || {
                sys::prctl_set_no_new_privs().unwrap();
                assert_eq!(confine(&files).unwrap(), Confinement::On, "tests need Landlock");
                let append =
                    |name| OpenOptions::new().append(true).create(true).open(at(name)).is_ok();
                let read = |name| fs::read(at(name)).is_ok();
                [
                    read("rules/a"),
                    read("rules/b"),
                    fs::read("/etc/hosts").is_ok(),
                    fs::read_dir("/proc/self/task").is_ok(),
                    append("log/a"),
                    append("log/b"),
                    fs::remove_file(at("rules/b")).is_ok(),
                    read("other/a"),
                    read("log/a"),
                    append("rules/a"),
                    append("other/b"),
                    fs::read_dir(at("rules")).is_ok(),
                    fs::remove_file(at("log/a")).is_ok(),
                    fs::write(at("log/a"), "").is_ok(),
                ]
            };
            scope.spawn(confined).join().unwrap()
        });
        fs::remove_dir_all(&directory).unwrap();
        let (may, may_not) = confined.split_at(7);
        assert_eq!(may, [true; 7]);
        // The last one truncates the file, which only version 3 and later forbid.
        assert_eq!(may_not[..6], [false; 6]);
        assert_eq!(may_not[6], sys::landlock_version().unwrap() < 3);
    }
}
