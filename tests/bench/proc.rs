//! What /proc tells of a server: CPU time and memory of its whole process tree, and of this
//! machine.

use std::fs;
use std::time::Duration;

/// Clock ticks of /proc/PID/stat in a second: USER_HZ, the same on every machine Linux runs on.
/// They are cut off from exact sums, not sampled, so a difference is at most two ticks wrong.
const TICKS: u64 = 100;

fn time(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// The parts of /proc/PID/stat used here.
struct Stat {
    parent: u32,
    /// User and system time of all its threads, those that have ended included, and of children
    /// that have ended and were waited for.
    ticks: u64,
    /// The same without children.
    own: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let own = number(11)? + number(12)?;
    let parent = fields.get(1)?.parse().ok()?;
    Some(Stat { parent, ticks: own + number(13)? + number(14)?, own })
}

/// A process and all that descend from it, parents first.
pub fn tree(root: u32) -> Vec<u32> {
    let all: Vec<(u32, u32)> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?.parent)))
        .collect();
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        tree.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    tree
}

/// The CPU time, user and system, that a process tree has used so far, but for children whose end
/// nobody in it has waited for.
pub fn cpu(root: u32) -> Duration {
    time(tree(root).into_iter().filter_map(stat).map(|stat| stat.ticks).sum())
}

/// The CPU time of this process, without that of the servers it has waited for.
pub fn own_cpu() -> Duration {
    time(stat(std::process::id()).unwrap().own)
}

/// The CPU time that all processes of this machine have used, and that the host has kept from it.
/// Interrupts are included, as most kernels charge them to the process that they interrupt.
pub fn cpu_of_all() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let (all, _) = text.split_once('\n').unwrap();
    let fields: Vec<u64> = all.split_whitespace().skip(1).map(|n| n.parse().unwrap()).collect();
    // user, nice, system, irq, softirq, steal
    time([0, 1, 2, 5, 6, 7].into_iter().map(|index| fields[index]).sum())
}

/// What a process tree holds.
#[derive(Clone, Copy)]
pub struct Held {
    /// Its proportional set size in KiB.
    pub pss: u32,
    pub threads: u32,
    pub descriptors: u32,
}

/// What a process tree holds now.
pub fn held(root: u32) -> Held {
    let mut held = Held { pss: 0, threads: 0, descriptors: 0 };
    for pid in tree(root) {
        let count = |what| match fs::read_dir(format!("/proc/{pid}/{what}")) {
            Ok(entries) => u32::try_from(entries.count()).unwrap(),
            Err(_) => 0,
        };
        held.threads += count("task");
        held.descriptors += count("fd");
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or("0 kB");
        held.pss += pss.split_whitespace().next().unwrap().parse::<u32>().unwrap();
    }
    held
}

pub fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap())
}

/// This machine in a line: processor, kernel, date.
pub fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let cores = cores();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let date = socksd::date::Date::of(std::time::SystemTime::now());
    format!("{model}, {cores} cores, Linux {}, {date}", kernel.trim())
}
