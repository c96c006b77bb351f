//! The lexer of socksd.rules(5): words with their escapes, and the line and column of each. Their
//! meaning is in `parse`.

use std::fmt;
use std::sync::Arc;

use crate::log::Escaped;
use crate::policy::nets;

/// A word or a punctuation mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Word { octets: Vec<u8>, quoted: bool },
    Comma,
    Not,
}

/// A position in a text, from 1:1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in octets.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// An error in a text.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Its position.
    pub at: Position,
    /// The message.
    pub what: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

/// A token and its position.
pub(super) struct Placed {
    token: Token,
    at: Position,
}

/// The tokens of a statement, at least one, and its file.
pub(super) struct Statement {
    pub(super) file: Arc<str>,
    pub(super) tokens: Vec<Placed>,
}

/// Splits octets into tokens.
pub(super) struct Lexer<'a> {
    rest: &'a [u8],
    at: Position,
}

impl<'a> Lexer<'a> {
    /// Starts a text, whose first line has this number.
    pub(super) fn new(octets: &'a [u8], first_line: usize) -> Self {
        Self { rest: octets, at: Position { line: first_line, column: 1 } }
    }

    fn next(&mut self) -> Option<u8> {
        let (&octet, rest) = self.rest.split_first()?;
        self.rest = rest;
        if octet == b'\n' {
            self.at.line += 1;
            self.at.column = 1;
        } else {
            self.at.column += 1;
        }
        Some(octet)
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.next();
        }
    }

    /// Skips the rest of a statement with an error, including continuation lines.
    pub(super) fn skip_statement(&mut self) {
        let mut last = None;
        while let Some(octet) = self.rest.first().copied() {
            if octet == b'\n' && last != Some(b'\\') {
                return;
            }
            last = Some(octet).filter(|octet| *octet != b'\r').or(last);
            self.next();
        }
    }

    fn skip_line(&mut self) {
        while self.rest.first().is_some_and(|&octet| octet != b'\n') {
            self.next();
        }
    }

    /// The tokens up to the end of the line, blank lines skipped; `None` at the end of the text.
    pub(super) fn statement(&mut self) -> Result<Option<Vec<Placed>>, Wrong> {
        let mut tokens = Vec::new();
        loop {
            let at = self.at;
            let put = |token| Placed { token, at };
            match self.rest {
                [] if tokens.is_empty() => return Ok(None),
                [] => return Ok(Some(tokens)),
                [b'\n', ..] | [b'\r', b'\n', ..] => {
                    self.skip_line();
                    self.next();
                    if !tokens.is_empty() {
                        return Ok(Some(tokens));
                    }
                }
                [b'\\', b'\n', ..] | [b'\\', b'\r', b'\n', ..] => {
                    self.skip_line();
                    self.next();
                }
                [b' ' | b'\t', ..] => self.skip(1),
                [b'#', ..] => self.skip_line(),
                [b',', ..] => {
                    self.next();
                    tokens.push(put(Token::Comma));
                }
                [b'!', ..] => {
                    self.next();
                    tokens.push(put(Token::Not));
                }
                [b'"', ..] => {
                    let octets = self.quoted()?;
                    tokens.push(put(Token::Word { octets, quoted: true }));
                }
                _ => {
                    let octets = self.word()?;
                    tokens.push(put(Token::Word { octets, quoted: false }));
                }
            }
        }
    }

    /// Reads an unquoted word.
    fn word(&mut self) -> Result<Vec<u8>, Wrong> {
        let mut octets = Vec::new();
        while let [octet, next @ ..] = self.rest {
            match octet {
                b'\\' if matches!(next, [b'\n', ..] | [b'\r', b'\n', ..]) => break,
                b' ' | b'\t' | b'\r' | b'\n' | b',' if !octets.is_empty() => break,
                b'"' | b'\\' | b'!' => {
                    let what = format!(
                        "'{}' in a word: put the word in double quotes",
                        Escaped(&[*octet])
                    );
                    return Err(Wrong { at: self.at, what });
                }
                b'#'..=b'~' => octets.extend(self.next()),
                _ => {
                    let what = format!(
                        "expected a printing ASCII character, found '{}'",
                        Escaped(&[*octet])
                    );
                    return Err(Wrong { at: self.at, what });
                }
            }
        }
        Ok(octets)
    }

    /// Reads a word in double quotes.
    fn quoted(&mut self) -> Result<Vec<u8>, Wrong> {
        let begin = self.at;
        let mut octets = Vec::new();
        self.next();
        loop {
            let at = self.at;
            match self.rest {
                [] | [b'\n', ..] => {
                    let what = "expected a closing double quote in this line".into();
                    return Err(Wrong { at: begin, what });
                }
                [b'"', ..] => {
                    self.next();
                    return Ok(octets);
                }
                [b'\\', b'x', high, low, ..] => {
                    let digit = |octet: &u8| {
                        char::from(*octet).to_digit(16).and_then(|d| u8::try_from(d).ok())
                    };
                    let Some((high, low)) = digit(high).zip(digit(low)) else {
                        let what = "expected two hexadecimal digits after \\x".into();
                        return Err(Wrong { at, what });
                    };
                    octets.push(high << 4 | low);
                    self.skip(4);
                }
                [b'\\', b'"' | b'\\', ..] => {
                    self.next();
                    octets.extend(self.next());
                }
                [b'\\', ..] => {
                    return Err(Wrong { at, what: "expected \\\", \\\\ or \\xNN".into() });
                }
                [b' '..=b'~', ..] => octets.extend(self.next()),
                [octet, ..] => {
                    let what = format!(
                        "expected a printing ASCII character or \\xNN, found '{}'",
                        Escaped(&[*octet])
                    );
                    return Err(Wrong { at, what });
                }
            }
        }
    }
}

/// The tokens of a statement, taken from the front.
pub(super) struct Tokens<'a> {
    tokens: std::slice::Iter<'a, Placed>,
    /// The position of the token taken last.
    pub(super) last: Position,
}

/// A word.
#[derive(Clone, Copy)]
pub(super) struct Word<'a> {
    /// The word, without its quotes.
    pub(super) octets: &'a [u8],
    /// Whether it is in quotes, and so not a keyword.
    quoted: bool,
}

impl<'a> Word<'a> {
    /// The word unless it is quoted.
    pub(super) fn bare(self) -> Option<&'a [u8]> {
        (!self.quoted).then_some(self.octets)
    }
}

impl<'a> Tokens<'a> {
    pub(super) fn of(statement: &'a Statement) -> Self {
        Self { tokens: statement.tokens.iter(), last: Position { line: 1, column: 1 } }
    }

    fn next(&mut self) -> Option<&'a Token> {
        let Placed { token, at } = self.tokens.next()?;
        self.last = *at;
        Some(token)
    }

    pub(super) fn peek(&self) -> Option<&'a Token> {
        self.tokens.as_slice().first().map(|placed| &placed.token)
    }

    /// Takes `token` if it comes next.
    pub(super) fn take(&mut self, token: &Token) -> bool {
        let comes = self.peek() == Some(token);
        if comes {
            self.next();
        }
        comes
    }

    /// Takes the next token; returns it if it can be a keyword.
    pub(super) fn keyword(&mut self) -> Option<&'a str> {
        match self.next()? {
            Token::Word { octets, quoted: false } => str::from_utf8(octets).ok(),
            _ => None,
        }
    }

    /// Takes a word.
    pub(super) fn word(&mut self, expected: &str) -> Result<Word<'a>, Wrong> {
        match self.peek() {
            Some(Token::Word { octets, quoted }) => {
                self.next();
                Ok(Word { octets, quoted: *quoted })
            }
            Some(_) => {
                self.next();
                Err(self.unexpected(expected))
            }
            None => Err(self.wrong(format!("expected {expected} after this"))),
        }
    }

    /// Takes a word and parses it.
    pub(super) fn value<T>(
        &mut self,
        expected: &str,
        parse: impl FnOnce(Word<'a>) -> Option<T>,
    ) -> Result<T, Wrong> {
        let word = self.word(expected)?;
        parse(word).ok_or_else(|| self.found(expected, word.octets))
    }

    pub(super) fn end(&mut self) -> Result<(), Wrong> {
        match self.next() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("the end of the line")),
        }
    }

    /// An error at the token taken last.
    pub(super) fn wrong(&self, what: String) -> Wrong {
        Wrong { at: self.last, what }
    }

    /// The error that the token taken last is not the expected one.
    pub(super) fn unexpected(&self, expected: &str) -> Wrong {
        self.wrong(format!("expected {expected}"))
    }

    /// The same, with the word that was found.
    pub(super) fn found(&self, expected: &str, found: &[u8]) -> Wrong {
        self.wrong(nets::expected(expected, found))
    }
}
