//! The log: where lines go, and how much an administrator wants of them. A line is one write. Its
//! fields and formats are in `line`.
//!
//! Writing never blocks a session: a line that a full pipe or disk, a stopped terminal, or the
//! syslog daemon does not take is dropped and counted. The next line that is written comes after
//! one with that count.

mod line;
pub mod syslog;
mod terminal;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

pub use crate::log::line::{Escaped, Format, Line};
use crate::log::syslog::{Facility, Severity, Syslog};
use crate::log::terminal::Terminal;
use crate::sync::lock;
use crate::sys::{self, PollFd};

/// How much an administrator wants to read, and how much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Trouble, and clients that failed to authenticate.
    Quiet,
    /// Also one line for each session.
    Normal,
    /// Also each request and connection as it is made.
    Verbose,
}

/// The log of the process, shared by all threads.
pub struct Log {
    level: Level,
    format: Format,
    /// Whether its lines begin with the time.
    timed: bool,
    /// The path of a log that was opened by name.
    path: Option<PathBuf>,
    sink: Mutex<Sink>,
}

struct Sink {
    out: Out,
    /// Lines dropped since the last count in the log.
    dropped: u64,
    /// Whether the last line was cut short by a full disk or terminal.
    torn: bool,
}

enum Out {
    /// A file, pipe or socket; `None` without a standard error. A regular file takes a write at
    /// once.
    File {
        file: Option<File>,
        regular: bool,
    },
    Terminal(Terminal),
    Syslog(Syslog),
}

impl Log {
    /// Logs to standard error.
    #[must_use]
    pub fn to_stderr(level: Level, format: Format) -> Self {
        let stderr = io::stderr();
        let file = stderr.as_fd().try_clone_to_owned().map(File::from).ok();
        let out = match file {
            Some(file) if stderr.is_terminal() => Out::Terminal(Terminal::new(file)),
            file => Out::file(file),
        };
        Self::new(level, format, None, out)
    }

    /// Logs to the end of the file at `path`, which is created, if it is missing, for its owner
    /// only.
    ///
    /// # Errors
    /// A message with the reason of open(2).
    pub fn to_file(level: Level, format: Format, path: PathBuf) -> Result<Self, String> {
        let file = open(&path)?;
        Ok(Self::new(level, format, Some(path), Out::file(Some(file))))
    }

    /// Logs to the syslog daemon of this host, which may start later.
    #[must_use]
    pub fn to_syslog(level: Level, format: Format, facility: Facility) -> Self {
        Self::new(level, format, None, Out::Syslog(Syslog::new(facility)))
    }

    fn new(level: Level, format: Format, path: Option<PathBuf>, out: Out) -> Self {
        // The syslog daemon adds the time itself.
        let timed = !matches!(out, Out::Syslog(_));
        let sink = Mutex::new(Sink { out, dropped: 0, torn: false });
        Self { level, format, timed, path, sink }
    }

    /// Opens the file of [`Log::to_file`] again: log rotation may have put another one in its
    /// place. Other logs stay as they are.
    ///
    /// # Errors
    /// A message with the reason of open(2). The log then continues in the old file.
    pub fn reopen(&self) -> Result<(), String> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = open(path)?;
        lock(&self.sink).out = Out::file(Some(file));
        Ok(())
    }

    /// Whether lines of `level` are written.
    #[must_use]
    pub fn wants(&self, level: Level) -> bool {
        level <= self.level
    }

    /// Begins a line for `event` in the format of this log.
    #[must_use]
    pub fn line(&self, event: &'static str) -> Line {
        Line::new(self.format, event, self.timed.then(SystemTime::now))
    }

    /// Writes a line of `level`.
    pub fn write(&self, level: Level, line: Line) {
        if !self.wants(level) {
            return;
        }
        let mut sink = lock(&self.sink);
        if sink.dropped > 0 {
            let told = self.line("log-dropped").number("lines", sink.dropped);
            if sink.put(Level::Quiet, told) {
                sink.dropped = 0;
            }
        }
        if !sink.put(level, line) {
            sink.dropped += 1;
        }
    }

    /// Waits up to a second for a terminal to take its last lines, at the end of the process.
    pub fn flush(&self) {
        let lines = match &lock(&self.sink).out {
            Out::Terminal(terminal) => terminal.started(),
            Out::File { .. } | Out::Syslog(_) => None,
        };
        if let Some(lines) = lines {
            lines.flush();
        }
    }
}

fn open(path: &Path) -> Result<File, String> {
    // With O_NONBLOCK a FIFO without a reader fails to open instead of blocking a reload.
    let flags = sys::O_NONBLOCK | sys::O_NOCTTY;
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).mode(0o600).custom_flags(flags).open(path);
    file.map_err(|error| format!("cannot open {}: {error}", path.display()))
}

impl Out {
    fn file(file: Option<File>) -> Self {
        let is_regular = |file: &File| file.metadata().is_ok_and(|found| found.is_file());
        Self::File { regular: file.as_ref().is_some_and(is_regular), file }
    }
}

/// The severity of a line of `level` for `event`.
fn severity(level: Level, event: &str) -> Severity {
    match level {
        Level::Quiet if event == "panic" => Severity::ERROR,
        Level::Quiet => Severity::WARNING,
        Level::Normal => Severity::INFO,
        Level::Verbose => Severity::DEBUG,
    }
}

/// Whether `file` takes a write now and has a reader.
fn is_ready(file: &File) -> bool {
    let mut fds = [PollFd::new(file, sys::POLLOUT)];
    let polled = sys::poll(&mut fds, Some(Duration::ZERO));
    let [fd] = &fds;
    polled.is_ok() && fd.has(sys::POLLOUT) && !fd.has(sys::POLLERR)
}

impl Sink {
    /// Writes one line if that does not wait. Returns whether all of it was written.
    fn put(&mut self, level: Level, line: Line) -> bool {
        let (file, regular) = match &mut self.out {
            Out::File { file: Some(file), regular } => (file, *regular),
            Out::File { file: None, .. } => return false,
            Out::Syslog(syslog) => {
                let severity = severity(level, line.event);
                return syslog.send(severity, &line.finish());
            }
            Out::Terminal(terminal) => {
                let mut text = line.finish();
                text.push('\n');
                return terminal.send(text.into_bytes());
            }
        };
        // A pipe that is ready takes PIPE_BUF (4,096) octets, which is more than a line has.
        if !regular && !is_ready(file) {
            return false;
        }
        let mut text = line.finish();
        text.push('\n');
        if self.torn {
            // The newline that the torn line lacks.
            text.insert(0, '\n');
        }
        match file.write(text.as_bytes()) {
            Ok(len) => {
                self.torn = len < text.len();
                !self.torn
            }
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_trouble_a_warning_and_a_session_information() {
        for (level, event, expected) in [
            (Level::Quiet, "panic", Severity::ERROR),
            (Level::Quiet, "reload-failed", Severity::WARNING),
            (Level::Normal, "close", Severity::INFO),
            (Level::Verbose, "request", Severity::DEBUG),
        ] {
            assert_eq!(severity(level, event), expected, "{event}");
        }
    }
}
