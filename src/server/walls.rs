//! The limits of the system on descriptors, threads and mappings, for the log. They are not
//! enforced here, since most are shared with other processes; the server's own limits are in
//! [`crate::server::slots`].

use std::fs;
use std::path::Path;

use crate::sys;

/// The key in the log and the value of each limit; `None` if there is none or it is unknown.
pub type Walls = [(&'static str, Option<u64>); 6];

/// Reads the limits; to be called before the server is confined to its files.
#[must_use]
pub fn read() -> Walls {
    let file = |path: &str| read_file(Path::new(path));
    let nofile = sys::getrlimit_nofile().ok().map(|(soft, _)| soft.to_string());
    [
        ("nofile", nofile),
        ("nproc", processes()),
        ("tasks_max", tasks()),
        ("pid_max", file("/proc/sys/kernel/pid_max")),
        ("threads_max", file("/proc/sys/kernel/threads-max")),
        ("max_map_count", file("/proc/sys/vm/max_map_count")),
    ]
    .map(|(key, value)| (key, value.and_then(|value| value.parse().ok())))
}

fn read_file(path: &Path) -> Option<String> {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).ok()
}

/// The soft limit on processes and threads of this user.
fn processes() -> Option<String> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max processes"))?;
    line.split_whitespace().next().map(str::to_owned)
}

/// The lowest limit on threads of the control group and its ancestors: TasksMax in systemd.
fn tasks() -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let limits = groups.lines().flat_map(|line| {
        // Number, controllers, path: cgroups(7). Version 2 has no controllers there.
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next());
        let root = match controllers.split(',').any(|controller| controller == "pids") {
            true => Some("/sys/fs/cgroup/pids"),
            false => controllers.is_empty().then_some("/sys/fs/cgroup"),
        };
        let group = root.zip(path).map(|(root, path)| format!("{root}{path}"));
        let limit = |dir: &Path| read_file(&dir.join("pids.max"))?.parse::<u64>().ok();
        let up = |group: String| Path::new(&group).ancestors().filter_map(limit).min();
        group.and_then(up)
    });
    limits.min().map(|limit| limit.to_string())
}
