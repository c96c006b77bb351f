//! `make bench`: drives SOCKS servers on loopback, one after the other in every round, and prints
//! what each of them costs. Client and target live in this process; what a server uses is read from
//! /proc. Nothing here is checked: that is for the tests.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used
)]
#![allow(missing_docs, unreachable_pub)]

mod chart;
mod figures;
mod proc;
mod report;
mod servers;
mod targets;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};

use getopts::{Matches, Options};

use figures::{Bench, FIGURES, Figure};
use report::Row;
use servers::{Kind, Running, Server, find};
use targets::Targets;

fn options() -> Options {
    let mut options = Options::new();
    options.optflag("", "bench", "measure; cargo bench says so, and cargo test does not");
    options.optflag("h", "help", "print this");
    options.optopt("", "only", "measure these alone", "FIGURE,...");
    options.optmulti("", "peer", "measure a server that runs", "NAME=ADDR:PORT,PID");
    options.optopt("", "runs", "rounds, of which the median counts (3)", "N");
    options.optopt("", "seconds", "how long to measure one number (1)", "SECONDS");
    options.optmulti("", "socksd", "measure another binary of socksd as well", "NAME=PATH");
    options.optopt("", "svg", "draw a chart as well", "FILE");
    options.optmulti("", "without", "leave a server out", "NAME");
    options
}

/// What the options say.
struct Settings {
    servers: Vec<Server>,
    figures: Vec<&'static Figure>,
    runs: u32,
    time: Duration,
}

fn settings(matches: &Matches) -> Result<Settings, String> {
    let pair = |text: &str| match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(format!("{text}: must be NAME=...")),
    };
    let ours = PathBuf::from(env!("CARGO_BIN_EXE_socksd"));
    let mut servers = vec![("socksd".to_owned(), Kind::Socksd(ours.clone()))];
    for text in matches.opt_strs("socksd") {
        let (name, path) = pair(&text)?;
        servers.push((name, Kind::Socksd(path.into())));
    }
    servers.push(("socksd+rules".to_owned(), Kind::SocksdWithRules(ours)));
    servers
        .extend(find("microsocks").map(|path| ("microsocks".to_owned(), Kind::Microsocks(path))));
    let dante = find("danted").or_else(|| find("sockd"));
    servers.extend(dante.map(|path| ("dante".to_owned(), Kind::Dante(path))));
    servers.extend(find("3proxy").map(|path| ("3proxy".to_owned(), Kind::ThreeProxy(path))));
    for text in matches.opt_strs("peer") {
        let (name, value) = pair(&text)?;
        let both = value.split_once(',');
        let both = both.and_then(|(addr, pid)| addr.parse().ok().zip(pid.parse().ok()));
        let (addr, pid) = both.ok_or_else(|| format!("{text}: must be NAME=ADDR:PORT,PID"))?;
        servers.push((name, Kind::Running(addr, pid)));
    }
    servers.push(("direct".to_owned(), Kind::Direct));
    for name in matches.opt_strs("without") {
        let count = servers.len();
        servers.retain(|(other, _)| *other != name);
        if servers.len() == count {
            return Err(format!("--without {name}: there is no such server"));
        }
    }
    let mut figures: Vec<&Figure> = FIGURES.iter().collect();
    if let Some(only) = matches.opt_str("only") {
        let only: Vec<&str> = only.split(',').collect();
        if let Some(name) = only.iter().find(|name| FIGURES.iter().all(|it| it.name != **name)) {
            let all: Vec<&str> = FIGURES.iter().map(|figure| figure.name).collect();
            return Err(format!("--only {name}: must be one of {}", all.join(", ")));
        }
        figures.retain(|figure| only.contains(&figure.name));
    }
    if servers.is_empty() {
        return Err("no server is left".to_owned());
    }
    let runs = matches.opt_get_default("runs", 3).map_err(|error| format!("--runs: {error}"))?;
    let seconds =
        matches.opt_get_default("seconds", 1.0).map_err(|error| format!("--seconds: {error}"))?;
    if runs == 0 || !(0.1..=60.0).contains(&seconds) {
        return Err("--runs must be at least 1, --seconds from 0.1 to 60".to_owned());
    }
    let time = Duration::from_secs_f64(seconds);
    let servers = servers.into_iter().map(|(name, kind)| Server { name, kind }).collect();
    Ok(Settings { servers, figures, runs, time })
}

/// Whether a figure is measured of a server: of rules, their price for a session alone.
fn is_measured(figure: &Figure, server: &Server) -> bool {
    figure.name == "sessions" || !matches!(server.kind, Kind::SocksdWithRules(_))
}

impl Settings {
    /// Measures all figures, of all servers in each round; returns a row for each metric, and the
    /// share of the processors that others had.
    fn measure(&self, dir: &Dir) -> (Vec<Row>, f64) {
        let targets = Targets::start();
        let (mut rows, mut load) = (Vec::new(), Vec::new());
        for figure in &self.figures {
            // The rounds of each server, or none once it has failed.
            let mut rounds = vec![Some(Vec::new()); self.servers.len()];
            for run in 1..=self.runs {
                let mut turns: Vec<_> = self.servers.iter().zip(&mut rounds).collect();
                // There and back, so that who comes later gains or loses nothing by that.
                if run.is_multiple_of(2) {
                    turns.reverse();
                }
                for (server, rounds) in turns {
                    let Some(so_far) = rounds else { continue };
                    if !is_measured(figure, server) {
                        continue;
                    }
                    eprintln!("{}: {}, {run} of {}", figure.name, server.name, self.runs);
                    // Each starts anew, so that no figure depends on what was before.
                    let numbers = server.start(&dir.0).and_then(|running| {
                        let bench = Bench { server: &running, targets: &targets, time: self.time };
                        let others = Others::begin(&running);
                        let numbers = (figure.measure)(&bench)?;
                        load.push(others.share(&running));
                        Ok(numbers)
                    });
                    match numbers {
                        Ok(numbers) => so_far.push(numbers),
                        Err(error) => {
                            let why = match error.kind() {
                                ErrorKind::WouldBlock => "nothing comes in time".to_owned(),
                                _ => error.to_string(),
                            };
                            eprintln!("{}: {}: {why}", figure.name, server.name);
                            *rounds = None;
                        }
                    }
                }
            }
            for (index, metric) in figure.metrics.iter().enumerate() {
                let of_metric = rounds.iter().map(|rounds| {
                    rounds.iter().flatten().filter_map(|numbers| numbers[index]).collect()
                });
                rows.push(Row { metric, rounds: of_metric.collect() });
            }
        }
        (rows, report::median(&load).unwrap_or(0.0))
    }
}

/// What else runs on this machine: it disturbs whatever is measured.
struct Others {
    begun: Instant,
    used: Duration,
}

impl Others {
    fn begin(server: &Running) -> Self {
        Self { begun: Instant::now(), used: Self::used(server) }
    }

    /// The CPU time of all processes but this one and the server.
    fn used(server: &Running) -> Duration {
        let own = proc::own_cpu() + server.cpu().unwrap_or_default();
        proc::cpu_of_all().saturating_sub(own)
    }

    /// The share of the processors that others have had since the beginning.
    fn share(&self, server: &Running) -> f64 {
        let used = Self::used(server).saturating_sub(self.used);
        (used / proc::cores()).as_secs_f64() / self.begun.elapsed().as_secs_f64()
    }
}

/// A directory for the files of servers, removed when it is dropped.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        let path = env::temp_dir().join(format!("socksd-bench-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn main() -> ExitCode {
    let options = options();
    let parsed = options.parse(env::args().skip(1)).map_err(|error| error.to_string());
    let (settings, svg) = match parsed.and_then(|matches| Ok((settings(&matches)?, matches))) {
        Ok((_, matches)) if matches.opt_present("help") => {
            print!("{}", options.usage("usage: make bench ARGS='[options]'"));
            return ExitCode::SUCCESS;
        }
        // cargo test --all-targets, which has no time for this.
        Ok((_, matches)) if !matches.opt_present("bench") => return ExitCode::SUCCESS,
        Ok((settings, matches)) => (settings, matches.opt_str("svg")),
        Err(error) => {
            eprintln!("bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    // Both ends of idle sessions are here. The servers inherit this.
    let (_, hard) = socksd::sys::getrlimit_nofile().unwrap();
    socksd::sys::setrlimit_nofile(hard, hard).unwrap();
    let (rows, others) = settings.measure(&Dir::new());
    let names: Vec<String> = settings.servers.iter().map(|server| server.name.clone()).collect();
    let (machine, runs) = (proc::machine(), settings.runs);
    let machine =
        format!("{machine}; {runs} rounds, others had {:.0} % of the cores", others * 1e2);
    println!("{machine}.\n");
    println!("{}", report::medians(&names, &rows));
    println!("{}", report::spread(&names, &rows));
    print!("{}", report::against_first(&names, &rows));
    if let Some(file) = svg
        && let Err(error) = fs::write(&file, chart::draw(&machine, &names, &rows))
    {
        eprintln!("bench: cannot write {file}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
