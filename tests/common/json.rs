//! A strict parser of the JSON that the log has: one object of strings, numbers and null.

use std::fs;
use std::iter::Peekable;
use std::str::Chars;
use std::sync::LazyLock;

/// The fields that are numbers, as the manual lists them, and what others begin with that are
/// numbers too.
pub static NUMBERS: LazyLock<(Vec<String>, String)> = LazyLock::new(|| {
    let manual = fs::read_to_string(super::root().join("man/socksd.8")).unwrap().replace('\n', " ");
    let (_, list) = manual.split_once("A value that is not known is null. The fields ").unwrap();
    let (list, _) = list.split_once(" are numbers.").unwrap();
    let (list, prefix) = list.split_once(" and those that begin with ").unwrap();
    (list.split(", ").map(str::to_owned).collect(), prefix.to_owned())
});

/// Whether the manual says that a field is a number.
pub fn is_number(key: &str) -> bool {
    NUMBERS.0.iter().any(|number| number == key) || key.starts_with(&NUMBERS.1)
}

/// A line of the log in JSON as the line in text it stands for.
pub fn to_text(line: &str) -> String {
    let fields = object(line).into_iter().map(|(key, value)| {
        let numeric = is_number(&key);
        match value {
            Value::Null => format!("{key}=-"),
            Value::Number(number) => {
                assert!(numeric, "{key} is not to be a number: {line}");
                format!("{key}={number}")
            }
            Value::Text(text) => {
                // These may be all digits.
                let may = ["user", "version", "reply"].contains(&key.as_str());
                let digits = text.parse::<f64>().is_ok();
                assert!(!numeric && (may || !digits), "{key} ought to be a number: {line}");
                if key == "error" { format!("{key}={text:?}") } else { format!("{key}={text}") }
            }
        }
    });
    fields.collect::<Vec<_>>().join(" ")
}

enum Value {
    Null,
    Number(String),
    Text(String),
}

fn object(line: &str) -> Vec<(String, Value)> {
    let mut input = Input { chars: line.chars().peekable(), line };
    let mut fields = Vec::new();
    input.expect('{');
    loop {
        let key = input.string();
        input.expect(':');
        let value = match input.peek() {
            Some('"') => Value::Text(input.string()),
            Some('n') => {
                "null".chars().for_each(|c| input.expect(c));
                Value::Null
            }
            _ => Value::Number(input.number()),
        };
        fields.push((key, value));
        match input.chars.next() {
            Some(',') => {}
            Some('}') => break,
            other => panic!("{other:?} in {line}"),
        }
    }
    assert_eq!(input.peek(), None, "{line}");
    fields
}

struct Input<'a> {
    chars: Peekable<Chars<'a>>,
    line: &'a str,
}

impl Input<'_> {
    fn peek(&mut self) -> Option<char> {
        self.chars.peek().copied()
    }

    fn expect(&mut self, c: char) {
        assert_eq!(self.chars.next(), Some(c), "{}", self.line);
    }

    fn string(&mut self) -> String {
        let mut units: Vec<u16> = Vec::new();
        self.expect('"');
        loop {
            let c = match self.chars.next() {
                Some('"') => break,
                Some('\\') => match self.chars.next() {
                    Some(c @ ('"' | '\\')) => c,
                    Some('n') => '\n',
                    Some('u') => {
                        let digits: String = self.chars.by_ref().take(4).collect();
                        assert_eq!(digits.len(), 4, "{}", self.line);
                        // One of a pair is no character by itself.
                        units.push(u16::from_str_radix(&digits, 16).unwrap());
                        continue;
                    }
                    other => panic!("\\{other:?} in {}", self.line),
                },
                Some(c @ ' '..) => c,
                other => panic!("{other:?} in {}", self.line),
            };
            units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
        }
        String::from_utf16(&units).unwrap()
    }

    fn digits(&mut self) -> String {
        let digits: String =
            std::iter::from_fn(|| self.chars.next_if(char::is_ascii_digit)).collect();
        assert!(!digits.is_empty(), "{}", self.line);
        digits
    }

    fn number(&mut self) -> String {
        let whole = self.digits();
        assert!(whole == "0" || !whole.starts_with('0'), "{}", self.line);
        match self.chars.next_if_eq(&'.') {
            Some(_) => format!("{whole}.{}", self.digits()),
            None => whole,
        }
    }
}
