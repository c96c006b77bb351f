//! Lines of the log, read again by parsers that are written here: what peers sent is in them and
//! forges nothing.

use socksd::log::{Escaped, Format, Line};

use super::assert_plain;

/// Octets as a word of a text: printing ASCII characters that mean just these octets. Those of a
/// peer have no mark of logfmt among them.
pub fn escape(octets: &[u8]) {
    let (own, peer) = (Escaped(octets).to_string(), format!("{:#}", Escaped(octets)));
    for text in [&own, &peer] {
        assert!(text.bytes().all(|octet| octet.is_ascii_graphic()), "{text:?}");
        assert!(!text.is_empty() && text.len() <= 4 * octets.len().max(1));
        assert_eq!(if text == "-" { Vec::new() } else { unescape(text) }, octets);
    }
    assert!(!peer.contains(['"', '=']), "{peer}");
}

/// A line in both formats. The first octet says how many of the others a peer sent; the rest is a
/// text for humans.
pub fn log_line(octets: &[u8]) {
    let Some((&len, rest)) = octets.split_first() else { return };
    let (peer, text) = rest.split_at(rest.len().min(len.into()));
    let text = String::from_utf8_lossy(text);
    let line = |format| {
        Line::new(format, "refuse", None)
            .octets("user", peer)
            .host("dst", peer, 80)
            .address("addr", None)
            .number("up", 12_u64)
            .word("rule", format_args!("{}:1", Escaped(peer)))
            .text("error", &text)
            .finish()
    };
    let (logfmt, json) = (line(Format::Text), line(Format::Json));
    assert_plain(&logfmt);
    assert_plain(&json);
    let fields = logfmt_fields(&logfmt);
    let keys: Vec<&str> = fields.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, ["event", "user", "dst", "addr", "up", "rule", "error"], "{logfmt}");
    let value = |key: &str| &*fields.iter().find(|(own, _)| *own == key).unwrap().1;
    let user = value("user");
    assert_eq!(if user == "-" { Vec::new() } else { unescape(user) }, peer);
    assert_eq!(unescape(value("dst").strip_suffix(":80").unwrap()), peer);
    let rule = value("rule").strip_suffix(":1").unwrap();
    assert_eq!(if rule == "-" { Vec::new() } else { unescape(rule) }, peer);
    assert_eq!([value("event"), value("addr"), value("up")], ["refuse", "-", "12"]);
    assert_eq!(value("error"), text);
    // null, and a number, stand there without quotes.
    assert_eq!(json_fields(&json), fields, "{json}");
}

/// The octets that a word stands for.
fn unescape(word: &str) -> Vec<u8> {
    let mut parts = word.split("\\x");
    let mut octets = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(2);
        octets.push(u8::from_str_radix(digits, 16).expect("two hexadecimal digits"));
        octets.extend_from_slice(rest.as_bytes());
    }
    assert!(!word.replace("\\x", "").contains('\\'), "{word}");
    octets
}

/// Keys and values as go-logfmt reads them.
fn logfmt_fields(line: &str) -> Vec<(&str, String)> {
    let (mut fields, mut rest) = (Vec::new(), line);
    loop {
        let (key, value) = rest.split_once('=').expect("a key");
        let after;
        if let Some(quoted) = value.strip_prefix('"') {
            let (text, behind) = string(quoted);
            fields.push((key, text));
            after = behind;
        } else {
            let len = value.find(' ').unwrap_or(value.len());
            let (text, behind) = value.split_at(len);
            assert!(!text.contains(['"', '=']) && !text.is_empty(), "{line}");
            fields.push((key, text.to_owned()));
            after = behind;
        }
        match after.strip_prefix(' ') {
            Some(more) => rest = more,
            None => {
                assert_eq!(after, "", "{line}");
                return fields;
            }
        }
    }
}

/// Keys and values of an object of JSON, of strings and numbers, with `-` for null.
fn json_fields(line: &str) -> Vec<(&str, String)> {
    let (mut fields, mut rest) = (Vec::new(), line.strip_prefix('{').expect("an object"));
    loop {
        let (key, value) = rest.strip_prefix('"').unwrap().split_once("\":").expect("a key");
        let after;
        if let Some(quoted) = value.strip_prefix('"') {
            let (text, behind) = string(quoted);
            fields.push((key, text));
            after = behind;
        } else {
            let len = value.find([',', '}']).expect("the end of a value");
            let (text, behind) = value.split_at(len);
            assert!(text == "null" || text.parse::<u64>().is_ok(), "{line}");
            fields.push((key, if text == "null" { "-".into() } else { text.to_owned() }));
            after = behind;
        }
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None => {
                assert_eq!(after, "}", "{line}");
                return fields;
            }
        }
    }
}

/// A string of JSON (RFC 8259 section 7) behind its first quotation mark, and what follows it.
fn string(quoted: &str) -> (String, &str) {
    let (mut units, mut chars) = (Vec::new(), quoted.chars());
    loop {
        let c = match chars.next().expect("a closing quotation mark") {
            '"' => return (String::from_utf16(&units).expect("whole pairs"), chars.as_str()),
            '\\' => match chars.next() {
                Some(c @ ('"' | '\\')) => c,
                Some('n') => '\n',
                Some('u') => {
                    let (digits, rest) = chars.as_str().split_at(4);
                    units.push(u16::from_str_radix(digits, 16).expect("four digits"));
                    chars = rest.chars();
                    continue;
                }
                other => panic!("\\{other:?} in {quoted}"),
            },
            c => c,
        };
        units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
    }
}
