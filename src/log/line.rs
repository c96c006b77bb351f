//! One line of the log: its fields, and how they are written as text and as JSON.

use std::fmt::{self, Display, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::date::{DAY, Date};

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `key=value`, with blanks between.
    Text,
    /// An object of JSON, RFC 8259.
    Json,
}

impl Format {
    pub(super) fn render(self, text: String) -> String {
        match self {
            Self::Text => text,
            Self::Json => json(&text),
        }
    }
}

/// One line being put together: time, event, then fields in the order they are added.
pub struct Line(pub(super) String);

impl Line {
    /// Begins a line for `event` with the time in UTC.
    #[must_use]
    pub fn new(event: &str) -> Self {
        // More than a session's line has as a rule.
        let mut line = String::with_capacity(512);
        line.push_str("time=");
        push_time(&mut line, SystemTime::now());
        line.push_str(" event=");
        line.push_str(event);
        Self(line)
    }

    /// Adds a value of our own making, which must hold no white space.
    #[must_use]
    pub fn field(mut self, key: &str, value: impl Display) -> Self {
        let _ = write!(self.begin(key), "{value}");
        self
    }

    /// Adds such a value, or `-` for none.
    #[must_use]
    pub fn field_or_dash(self, key: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.field(key, value),
            None => self.field(key, '-'),
        }
    }

    /// Adds a number.
    #[must_use]
    pub fn number(mut self, key: &str, value: u64) -> Self {
        push_number(self.begin(key), value, 1);
        self
    }

    /// Adds seconds, to the millisecond.
    #[must_use]
    pub fn seconds(mut self, key: &str, value: Duration) -> Self {
        let text = self.begin(key);
        push_number(text, value.as_secs(), 1);
        text.push('.');
        push_number(text, value.subsec_millis().into(), 3);
        self
    }

    /// Adds a key; its value is to follow. Half the work of a format that has all of this.
    fn begin(&mut self, key: &str) -> &mut String {
        self.0.push(' ');
        self.0.push_str(key);
        self.0.push('=');
        &mut self.0
    }

    /// Adds the last field, `error`: a text for a human, quoted and escaped.
    #[must_use]
    pub fn text(mut self, key: &str, value: impl Display) -> Self {
        let _ = write!(self.0, " {key}={}", Quoted(&value.to_string()));
        self
    }

    /// The fields added so far, of a line without a text.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.split(' ').skip(2).filter_map(|field| field.split_once('='))
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
            None => self.field("client", "unix"),
            addr => self.address("client", addr),
        }
    }

    /// Adds an address, or `-` for none.
    #[must_use]
    pub fn address(mut self, key: &str, value: Option<SocketAddr>) -> Self {
        let Some(SocketAddr::V4(addr)) = value else { return self.field_or_dash(key, value) };
        let [a, b, c, d] = addr.ip().octets();
        let text = self.begin(key);
        for (number, mark) in [(a, '.'), (b, '.'), (c, '.'), (d, ':')] {
            push_number(text, number.into(), 1);
            text.push(mark);
        }
        push_number(text, addr.port().into(), 1);
        self
    }
}

/// The fields that are numbers in JSON, besides those of [`NUMERIC_PREFIX`]; any other value that is
/// known is a string.
pub const NUMERIC: [&str; 23] = [
    "session",
    "up",
    "down",
    "dropped",
    "seconds",
    "count",
    "lines",
    "rules",
    "users",
    "sessions",
    "per-client",
    "half-open",
    "uptime",
    "threads",
    "descriptors",
    "names",
    "accepted",
    "nofile",
    "nproc",
    "tasks-max",
    "pid-max",
    "threads-max",
    "max-map-count",
];

/// What fields begin with that are numbers as well.
pub const NUMERIC_PREFIX: &str = "refused-";

/// A line as an object of JSON. It is made of the text, so the two cannot tell different things,
/// and text, the default, costs nothing more.
fn json(text: &str) -> String {
    let mut json = String::with_capacity(2 * text.len());
    // The last field alone can have blanks in it; it is quoted as in JSON already.
    let (fields, error) = match text.split_once(" error=") {
        Some((fields, error)) => (fields, Some(error)),
        None => (text, None),
    };
    let mut separator = '{';
    for (key, value) in fields.split(' ').filter_map(|field| field.split_once('=')) {
        let _ = match value {
            "-" => write!(json, "{separator}\"{key}\":null"),
            _ if NUMERIC.contains(&key) || key.starts_with(NUMERIC_PREFIX) => {
                write!(json, "{separator}\"{key}\":{value}")
            }
            _ => write!(json, "{separator}\"{key}\":{}", Quoted(value)),
        };
        separator = ',';
    }
    if let Some(error) = error {
        let _ = write!(json, ",\"error\":{error}");
    }
    json.push('}');
    json
}

/// A text in double quotes, escaped as a string of JSON is (RFC 8259 section 7), and with it
/// whatever a terminal would not show as a character.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '\n' => f.write_str("\\n")?,
                ' '..='~' => f.write_char(c)?,
                _ if c.escape_debug().len() == 1 => f.write_char(c)?,
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(f, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        f.write_char('"')
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

/// Adds a number, with zeros before it up to so many digits. A session's line has two dozen of them,
/// and their `Display` takes five times as long.
fn push_number(text: &mut String, number: u64, digits: u32) {
    if number >= 10 || digits > 1 {
        push_number(text, number / 10, digits.saturating_sub(1));
    }
    text.push(char::from(b'0' + u8::try_from(number % 10).unwrap_or(0)));
}

/// Adds a time as `2026-11-21T00:55:44.123Z`.
fn push_time(text: &mut String, time: SystemTime) {
    // A clock before 1970 is broken; its lines say 1970.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (Date { year, month, day }, second) = (Date::of(time), since.as_secs() % DAY);
    for (number, digits, mark) in [
        (year, 4, '-'),
        (month, 2, '-'),
        (day, 2, 'T'),
        (second / 3_600, 2, ':'),
        (second / 60 % 60, 2, ':'),
        (second % 60, 2, '.'),
        (since.subsec_millis().into(), 3, 'Z'),
    ] {
        push_number(text, number, digits);
        text.push(mark);
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
            let mut line = String::new();
            push_time(&mut line, UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(line, text);
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
        assert!(json(&line.0).len() > line.0.len());
        assert!(json(&line.0).len() + 1_000 < 4_096);
    }

    #[test]
    fn json_has_numbers_strings_and_null_in_the_order_of_the_text() {
        let line = Line::new("refuse")
            .field("session", 7)
            .octets("user", b"a\"\\\x00\xff=1")
            .field("addr", '-')
            .octets("version", b"-")
            .field("seconds", "0.500")
            .field("reply", "05");
        let (_, text) = line.0.split_once(' ').unwrap();
        assert_eq!(
            json(text),
            r#"{"event":"refuse","session":7,"user":"a\"\\x5c\\x00\\xff=1","addr":null,"#
                .to_owned()
                + r#""version":"\\x2d","seconds":0.500,"reply":"05"}"#
        );
    }

    #[test]
    fn a_text_is_quoted_as_in_json() {
        let text = "it's \"a\\b\"\n\t\0\x1b\x7f é \u{202e} \u{e0001}";
        let quoted = r#""it's \"a\\b\"\n\u0009\u0000\u001b\u007f é \u202e \udb40\udc01""#;
        assert_eq!(Quoted(text).to_string(), quoted);
        let line = Line::new("error").text("error", text).0;
        assert!(line.ends_with(&format!(" event=error error={quoted}")), "{line}");
        assert!(json(&line).ends_with(&format!(",\"event\":\"error\",\"error\":{quoted}}}")));
    }

    #[test]
    fn a_peer_cannot_make_what_looks_like_the_last_field() {
        let line = Line::new("close").octets("user", b" error=\"x\"").octets("dst", b"error=");
        let (_, text) = line.0.split_once(' ').unwrap();
        let expected = r#"{"event":"close","user":"\\x20error=\"x\"","dst":"error="}"#;
        assert_eq!(json(text), expected);
    }
}
