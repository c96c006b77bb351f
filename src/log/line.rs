//! One line of the log: its fields in order, each written in the format of the log at once.
//!
//! Peers cannot forge or split a field or a line: their octets are escaped here. The destination of
//! lines is not known here; see [`crate::log::Log`].

use std::fmt::{self, Display, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::date::{DAY, Date};

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// logfmt: `key=value`, separated by blanks.
    Text,
    /// An object of JSON, RFC 8259.
    Json,
}

/// A line that is being built: time, event, then fields in the order of the calls.
pub struct Line {
    /// The name of the event.
    pub(super) event: &'static str,
    text: String,
    form: Form,
}

/// The shape that fields are written in.
enum Form {
    Text,
    Json,
    /// Values without keys. The keys are kept, each with the start of its value in the text.
    Cells(Vec<(&'static str, usize)>),
}

impl Line {
    /// Begins a line for `event`, with the time in UTC if one is given.
    pub fn new(format: Format, event: &'static str, time: Option<SystemTime>) -> Self {
        let form = match format {
            Format::Text => Form::Text,
            Format::Json => Form::Json,
        };
        // Most lines of sessions are shorter.
        let mut line = Self { event, text: String::with_capacity(512), form };
        if let Some(time) = time {
            line.begin_string("time");
            push_time(&mut line.text, time);
            line.quote();
        }
        line.word("event", event)
    }

    /// Begins a line that is for [`Line::cells`] instead of the log.
    #[must_use]
    pub fn of_cells() -> Self {
        Self { event: "", text: String::new(), form: Form::Cells(Vec::new()) }
    }

    /// The keys and values of a line begun with [`Line::of_cells`].
    pub fn cells(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let begins = match &self.form {
            Form::Cells(begins) => begins.as_slice(),
            Form::Text | Form::Json => &[],
        };
        let ends = begins.iter().skip(1).map(|(_, begin)| *begin).chain([self.text.len()]);
        let value = |begin: usize, end| self.text.get(begin..end).unwrap_or_default();
        begins.iter().zip(ends).map(move |((key, begin), end)| (*key, value(*begin, end)))
    }

    /// The whole line, without the newline that ends it.
    pub fn finish(mut self) -> String {
        if self.is_json() {
            self.text.push('}');
        }
        self.text
    }

    /// Adds a word of this program's own making: not empty, and without white space.
    #[must_use]
    pub fn word(mut self, key: &'static str, word: impl Display) -> Self {
        self.begin_string(key);
        let backslash = self.backslash();
        let _ = write!(Bare { text: &mut self.text, backslash }, "{word}");
        self.quote();
        self
    }

    /// Adds such a word, or the mark of an unknown value.
    #[must_use]
    pub fn word_or_dash(self, key: &'static str, word: Option<impl Display>) -> Self {
        match word {
            Some(word) => self.word(key, word),
            None => self.dash(key),
        }
    }

    /// Adds a number.
    #[must_use]
    pub fn number(mut self, key: &'static str, number: impl TryInto<u64>) -> Self {
        self.begin(key);
        push_number(&mut self.text, number.try_into().unwrap_or(u64::MAX), 1);
        self
    }

    /// Adds a number, or the mark of an unknown value.
    #[must_use]
    pub fn number_or_dash(self, key: &'static str, number: Option<impl TryInto<u64>>) -> Self {
        match number {
            Some(number) => self.number(key, number),
            None => self.dash(key),
        }
    }

    /// Adds seconds, to the millisecond.
    #[must_use]
    pub fn seconds(mut self, key: &'static str, time: Duration) -> Self {
        self.begin(key);
        push_number(&mut self.text, time.as_secs(), 1);
        self.text.push('.');
        push_number(&mut self.text, time.subsec_millis().into(), 3);
        self
    }

    /// Adds octets of a peer, escaped. No octets are an unknown value.
    #[must_use]
    pub fn octets(mut self, key: &'static str, octets: &[u8]) -> Self {
        if octets.is_empty() {
            return self.dash(key);
        }
        self.begin_string(key);
        if octets == b"-" {
            let backslash = self.backslash();
            push_escaped(&mut self.text, backslash, b'-');
        } else {
            self.push_octets(octets);
        }
        self.quote();
        self
    }

    /// Adds the name of a host, octets of a peer, and a port.
    #[must_use]
    pub fn host(mut self, key: &'static str, name: &[u8], port: u16) -> Self {
        self.begin_string(key);
        self.push_octets(name);
        self.text.push(':');
        push_number(&mut self.text, port.into(), 1);
        self.quote();
        self
    }

    /// Adds the address of a client; `unix` for a client of a UNIX socket, which has none.
    #[must_use]
    pub fn client(self, addr: Option<SocketAddr>) -> Self {
        match addr {
            None => self.word("client", "unix"),
            addr => self.address("client", addr),
        }
    }

    /// Adds an address, or the mark of an unknown value.
    #[must_use]
    pub fn address(mut self, key: &'static str, addr: Option<SocketAddr>) -> Self {
        let Some(SocketAddr::V4(addr)) = addr else { return self.word_or_dash(key, addr) };
        let [a, b, c, d] = addr.ip().octets();
        self.begin_string(key);
        for (number, mark) in [(a, '.'), (b, '.'), (c, '.'), (d, ':')] {
            push_number(&mut self.text, number.into(), 1);
            self.text.push(mark);
        }
        push_number(&mut self.text, addr.port().into(), 1);
        self.quote();
        self
    }

    /// Adds a text for humans, quoted and escaped. It is the last field.
    #[must_use]
    pub fn text(mut self, key: &'static str, text: impl Display) -> Self {
        self.begin(key);
        self.text.push('"');
        let _ = write!(Quoting(&mut self.text), "{text}");
        self.text.push('"');
        self
    }

    /// Adds the mark of an unknown value.
    #[must_use]
    pub fn dash(mut self, key: &'static str) -> Self {
        self.begin(key);
        self.text.push_str(if self.is_json() { "null" } else { "-" });
        self
    }

    /// Writes a key. The caller writes the value.
    fn begin(&mut self, key: &'static str) {
        let Self { text, form, .. } = self;
        match form {
            Form::Text => {
                if !text.is_empty() {
                    text.push(' ');
                }
                text.push_str(key);
                text.push('=');
            }
            Form::Json => {
                text.push_str(if text.is_empty() { "{\"" } else { ",\"" });
                text.push_str(key);
                text.push_str("\":");
            }
            Form::Cells(cells) => cells.push((key, text.len())),
        }
    }

    /// Writes a key and the start of its value, a string in JSON.
    fn begin_string(&mut self, key: &'static str) {
        self.begin(key);
        self.quote();
    }

    fn push_octets(&mut self, octets: &[u8]) {
        let backslash = self.backslash();
        for &octet in octets {
            if is_bare(octet) {
                self.text.push(char::from(octet));
            } else {
                push_escaped(&mut self.text, backslash, octet);
            }
        }
    }

    fn is_json(&self) -> bool {
        matches!(self.form, Form::Json)
    }

    /// A backslash as it stands in a string of this format.
    fn backslash(&self) -> &'static str {
        if self.is_json() { "\\\\" } else { "\\" }
    }

    /// Writes the mark before and after a string in JSON.
    fn quote(&mut self) {
        if self.is_json() {
            self.text.push('"');
        }
    }
}

/// Whether an octet may stand unescaped in a value without quotes. logfmt forbids `"` and `=`.
const fn is_bare(octet: u8) -> bool {
    octet.is_ascii_graphic() && !matches!(octet, b'\\' | b'"' | b'=')
}

/// Writes an octet in hexadecimal.
fn push_escaped(text: &mut String, backslash: &str, octet: u8) {
    text.push_str(backslash);
    let _ = write!(text, "x{octet:02x}");
}

/// Writes a word as a value without quotes, or into a string of JSON. Paths of files in it are
/// [`Escaped`] already, but for `"` and `=`.
struct Bare<'a> {
    text: &'a mut String,
    backslash: &'static str,
}

impl fmt::Write for Bare<'_> {
    fn write_str(&mut self, word: &str) -> fmt::Result {
        for c in word.chars() {
            match c {
                '"' => push_escaped(self.text, self.backslash, b'"'),
                '=' => push_escaped(self.text, self.backslash, b'='),
                '\\' => self.text.push_str(self.backslash),
                c => self.text.push(c),
            }
        }
        Ok(())
    }
}

/// Writes text between double quotes with the escapes of JSON (RFC 8259 section 7), which also hide
/// every character that a terminal would not show.
struct Quoting<'a>(&'a mut String);

impl fmt::Write for Quoting<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                '\n' => self.0.push_str("\\n"),
                ' '..='~' => self.0.push(c),
                _ if c.escape_debug().len() == 1 => self.0.push(c),
                _ => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(self.0, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Octets in a text for humans: `-` for none, `\xNN` for the backslash, a lone `-`, and all that is
/// not a printing ASCII character. `{:#}` escapes `"` and `=` too, and is for octets of a peer.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a [u8]);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("-"),
            b"-" => f.write_str("\\x2d"),
            octets => octets.iter().try_for_each(|&octet| match octet {
                b'"' | b'=' if !f.alternate() => f.write_char(octet.into()),
                octet if is_bare(octet) => f.write_char(octet.into()),
                octet => write!(f, "\\x{octet:02x}"),
            }),
        }
    }
}

/// Writes a number, two digits at a time, with leading zeros up to `digits`. The line of a session
/// has two dozen numbers, and `Display` takes several times as long.
fn push_number(text: &mut String, number: u64, digits: u32) {
    if number >= 100 || digits > 2 {
        push_number(text, number / 100, digits.saturating_sub(2));
    }
    let last = u8::try_from(number % 100).unwrap_or(0);
    if number >= 10 || digits > 1 {
        text.push(char::from(b'0' + last / 10));
    }
    text.push(char::from(b'0' + last % 10));
}

/// Writes a time as `2026-11-21T00:55:44.123Z`.
fn push_time(text: &mut String, time: SystemTime) {
    // Before 1970 the clock is wrong, and the line says 1970.
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
    fn numbers_are_written_as_std_does() {
        for number in [0, 1, 9, 10, 99, 100, 101, 999, 1_000, 12_345, u64::MAX - 1, u64::MAX] {
            for digits in 1..=6_u32 {
                let mut text = String::new();
                push_number(&mut text, number, digits);
                let width = usize::try_from(digits).unwrap();
                assert_eq!(text, format!("{number:0width$}"));
            }
        }
    }

    /// A line without a time as text and as JSON.
    fn both(event: &'static str, fill: impl Fn(Line) -> Line) -> [String; 2] {
        [Format::Text, Format::Json].map(|format| fill(Line::new(format, event, None)).finish())
    }

    #[test]
    fn octets_of_a_peer_cannot_forge_a_field_or_a_line() {
        let octets = b"a b\n\x00\\\xffevent=x";
        let [text, _] = both("close", |line| line.octets("user", octets).host("dst", octets, 80));
        let told = r"a\x20b\x0a\x00\x5c\xffevent\x3dx";
        assert_eq!(text, format!("event=close user={told} dst={told}:80"));
        assert_eq!(Escaped(b"").to_string(), "-");
        assert_eq!(Escaped(b"-").to_string(), "\\x2d");
    }

    #[test]
    fn the_longest_session_line_fits_into_one_pipe_write() {
        let worst = [b'\n'; 255];
        let [text, json] = both("close", |line| line.octets("user", &worst).octets("dst", &worst));
        assert!(json.len() > text.len());
        assert!(json.len() + 1_000 < 4_096);
    }

    #[test]
    fn json_has_numbers_strings_and_null_in_the_order_of_the_text() {
        let lines = both("refuse", |line| {
            line.number("session", 7_u64)
                .octets("user", b"a\"\\\x00\xff=1")
                .address("addr", None)
                .address("local", Some(SocketAddr::from(([192, 0, 2, 1], 80))))
                .octets("version", b"-")
                .seconds("seconds", Duration::from_millis(500))
                .number_or_dash("users", None::<u64>)
                .word("reply", "05")
        });
        let text = r"event=refuse session=7 user=a\x22\x5c\x00\xff\x3d1 addr=- local=192.0.2.1:80 "
            .to_owned()
            + r"version=\x2d seconds=0.500 users=- reply=05";
        let json = r#"{"event":"refuse","session":7,"user":"a\\x22\\x5c\\x00\\xff\\x3d1","#
            .to_owned()
            + r#""addr":null,"#
            + r#""local":"192.0.2.1:80","version":"\\x2d","seconds":0.500,"users":null,"#
            + r#""reply":"05"}"#;
        assert_eq!(lines, [text, json]);
    }

    #[test]
    fn the_time_comes_first_where_the_log_tells_it() {
        for (format, begin) in [
            (Format::Text, "time=1970-01-01T00:00:00.000Z event=idle sessions=0"),
            (Format::Json, r#"{"time":"1970-01-01T00:00:00.000Z","event":"idle","sessions":0}"#),
        ] {
            let line = Line::new(format, "idle", Some(UNIX_EPOCH)).number("sessions", 0_u64);
            assert_eq!(line.finish(), begin);
        }
    }

    #[test]
    fn cells_have_keys_and_values_of_any_length() {
        let line = Line::of_cells().octets("user", b"").number("up", 12_u64).word("rule", "f:1");
        let cells: Vec<_> = line.cells().collect();
        assert_eq!(cells, [("user", "-"), ("up", "12"), ("rule", "f:1")]);
        assert_eq!(Line::of_cells().cells().count(), 0);
    }

    #[test]
    fn a_path_in_a_word_ends_no_value() {
        let path = Escaped(b"/a \"b\"=c");
        let [text, json] = both("listening", |line| line.word("addr", format_args!("unix:{path}")));
        assert_eq!(text, r"event=listening addr=unix:/a\x20\x22b\x22\x3dc");
        assert_eq!(json, r#"{"event":"listening","addr":"unix:/a\\x20\\x22b\\x22\\x3dc"}"#);
    }

    #[test]
    fn a_text_for_humans_has_marks_as_they_are_unless_a_peer_made_them() {
        assert_eq!(Escaped(b"a=\"\\ ").to_string(), r#"a="\x5c\x20"#);
        assert_eq!(format!("{:#}", Escaped(b"a=\"\\ ")), r"a\x3d\x22\x5c\x20");
    }

    #[test]
    fn a_text_is_quoted_as_in_json() {
        let text = "it's \"a\\b\"\n\t\0\x1b\x7f é \u{202e} \u{e0001}";
        let quoted = r#""it's \"a\\b\"\n\u0009\u0000\u001b\u007f é \u202e \udb40\udc01""#;
        let [line, json] = both("error", |line| line.text("error", text));
        assert_eq!(line, format!("event=error error={quoted}"));
        assert_eq!(json, format!("{{\"event\":\"error\",\"error\":{quoted}}}"));
    }

    #[test]
    fn a_peer_cannot_make_what_looks_like_the_last_field() {
        let [_, json] =
            both("close", |line| line.octets("user", b" error=\"x\"").octets("dst", b"error="));
        let expected =
            r#"{"event":"close","user":"\\x20error\\x3d\\x22x\\x22","dst":"error\\x3d"}"#;
        assert_eq!(json, expected);
    }
}
