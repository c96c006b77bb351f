//! The log: one event, one line of `key=value`, one write.
//!
//! What a peer sent is escaped before it comes here as text, so no line can be forged or split.
//! Writing never blocks a session: a line that a full pipe or disk would not take is dropped and
//! counted, and the count is told with the next line that goes out.

use std::fmt::{self, Display, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::date::{DAY, Date};
use crate::sys::{self, PollFd};
use crate::threads::lock;

/// How much an administrator wants to read; also how much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Trouble, and clients that failed to authenticate.
    Quiet,
    /// Also one line for each session.
    Normal,
    /// Also each request and connection as it is made.
    Verbose,
}

/// Where lines go. Shared by all threads.
pub struct Log {
    level: Level,
    sink: Mutex<Sink>,
}

struct Sink {
    /// `None` where there is none to write to.
    file: Option<File>,
    /// Lines that did not go out and have not been told of.
    dropped: u64,
    /// Whether the last line was cut short by a full disk or terminal.
    torn: bool,
}

impl Log {
    /// Logs to standard error.
    #[must_use]
    pub fn to_stderr(level: Level) -> Self {
        let stderr = io::stderr();
        let shared = || stderr.as_fd().try_clone_to_owned().map(File::from);
        let file = if stderr.is_terminal() {
            // A terminal says it is ready when it has room for part of a line; the rest of the
            // write would wait for its reader. Opened anew it can be told not to wait, which does
            // not touch the open file that a shell shares. Another user's terminal, or one in a
            // chroot, cannot be opened: a log that may wait is better than none.
            let flags = sys::O_NONBLOCK | sys::O_NOCTTY;
            let own = OpenOptions::new().append(true).custom_flags(flags).open("/proc/self/fd/2");
            own.or_else(|_| shared())
        } else {
            shared()
        };
        Self::new(level, file.ok())
    }

    /// Logs to the end of the file at `path`, which is made if need be, readable by its owner only.
    ///
    /// # Errors
    /// As open(2).
    pub fn to_file(level: Level, path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(Self::new(level, Some(file)))
    }

    fn new(level: Level, file: Option<File>) -> Self {
        Self { level, sink: Mutex::new(Sink { file, dropped: 0, torn: false }) }
    }

    /// Whether a line of `level` would be written.
    #[must_use]
    pub fn wants(&self, level: Level) -> bool {
        level <= self.level
    }

    /// Writes a line that matters as `level` says.
    pub fn write(&self, level: Level, line: Line) {
        if !self.wants(level) {
            return;
        }
        let mut sink = lock(&self.sink);
        if sink.dropped > 0 {
            let told = Line::new("log-dropped").field("lines", sink.dropped);
            if sink.put(told) {
                sink.dropped = 0;
            }
        }
        if !sink.put(line) {
            sink.dropped += 1;
        }
    }
}

impl Sink {
    /// Writes one line if that can be done at once; tells whether it was written whole.
    fn put(&mut self, line: Line) -> bool {
        let Some(file) = &mut self.file else { return false };
        let mut fds = [PollFd::new(file, sys::POLLOUT)];
        // A pipe that is ready takes a line of up to PIPE_BUF (4,096) octets whole.
        let polled = sys::poll(&mut fds, Some(Duration::ZERO));
        let [fd] = &fds;
        if polled.is_err() || !fd.has(sys::POLLOUT) || fd.has(sys::POLLERR) {
            return false;
        }
        // What is left of a torn line ends where this one begins.
        let text = [if self.torn { "\n" } else { "" }, &line.0, "\n"].concat();
        match file.write(text.as_bytes()) {
            Ok(len) => {
                self.torn = len < text.len();
                !self.torn
            }
            Err(_) => false,
        }
    }
}

/// One line being put together: time, event, then fields in the order they are added.
pub struct Line(String);

impl Line {
    /// Begins a line for `event` with the time in UTC.
    #[must_use]
    pub fn new(event: &str) -> Self {
        let mut line = String::with_capacity(256);
        let _ = write!(line, "time={} event={event}", Utc(SystemTime::now()));
        Self(line)
    }

    /// Adds a value of our own making, which must hold no white space.
    #[must_use]
    pub fn field(mut self, key: &str, value: impl Display) -> Self {
        let _ = write!(self.0, " {key}={value}");
        self
    }

    /// Adds a text for a human, quoted and escaped.
    #[must_use]
    pub fn text(mut self, key: &str, value: impl Display) -> Self {
        let _ = write!(self.0, " {key}={:?}", value.to_string());
        self
    }

    /// Adds octets a peer made, escaped.
    #[must_use]
    pub fn octets(self, key: &str, value: &[u8]) -> Self {
        self.field(key, Escaped(value))
    }

    /// Adds the address of a client, or `unix` for one of a UNIX socket that has none.
    #[must_use]
    pub fn client(self, value: Option<SocketAddr>) -> Self {
        match value {
            Some(addr) => self.field("client", addr),
            None => self.field("client", "unix"),
        }
    }

    /// Adds an address, or `-` for none.
    #[must_use]
    pub fn address(self, key: &str, value: Option<SocketAddr>) -> Self {
        match value {
            Some(addr) => self.field(key, addr),
            None => self.field(key, '-'),
        }
    }
}

/// Octets of a peer as they stand in the log: `-` for none, `\xNN` for whatever is not a printing
/// ASCII character, for the backslash, and for a lone `-`.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a [u8]);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("-"),
            b"-" => f.write_str("\\x2d"),
            octets => octets.iter().try_for_each(|&octet| match octet {
                b'!'..=b'~' if octet != b'\\' => f.write_char(char::from(octet)),
                _ => write!(f, "\\x{octet:02x}"),
            }),
        }
    }
}

/// A time as `2026-11-21T00:55:44.123Z`.
struct Utc(SystemTime);

impl Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A clock before 1970 is broken; its lines say 1970.
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = since.as_secs() % DAY;
        write!(
            f,
            "{}T{:02}:{:02}:{:02}.{:03}Z",
            Date::of(self.0),
            second / 3_600,
            second / 60 % 60,
            second % 60,
            since.subsec_millis(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_with_leap_years() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Utc(UNIX_EPOCH + Duration::from_secs(seconds)).to_string(), text);
        }
    }

    #[test]
    fn octets_of_a_peer_cannot_forge_a_field_or_a_line() {
        let line = Line::new("close").octets("user", b"a b\n\x00\\\xffevent=x").0;
        assert!(line.ends_with(" event=close user=a\\x20b\\x0a\\x00\\x5c\\xffevent=x"), "{line}");
        assert_eq!(Escaped(b"").to_string(), "-");
        assert_eq!(Escaped(b"-").to_string(), "\\x2d");
    }

    #[test]
    fn the_longest_session_line_fits_into_one_pipe_write() {
        let worst = [b'\n'; 255];
        let line = Line::new("close").octets("user", &worst).octets("dst", &worst);
        assert!(line.0.len() + 1_000 < 4_096);
    }
}
