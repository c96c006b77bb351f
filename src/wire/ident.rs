//! Query and answer of the Identification Protocol (RFC 1413). This server is its client.
//!
//! ```text
//! query   port on the client's host "," port on this host EOL
//! answer  port pair ":" "USERID" ":" opsys [ "," charset ] ":" user id EOL
//!         port pair ":" "ERROR" ":" error type EOL
//! ```
//!
//! EOL is CR LF; a bare LF is accepted too. A connection carries one query, though a daemon may
//! accept more. The user id stays octets in any charset, since it is only compared. The exchange is
//! in [`crate::auth::ident`].

use crate::wire::DecodeError;

/// Longest answer, in octets with its end of line: a client may give up after 1000 (RFC 1413 note 2
/// on syntax), and a user id of 512 octets fits.
pub const ANSWER_MAX: usize = 1000;

/// The answer of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The owner of the connection: not empty, and without NUL, CR and LF.
    UserId(Vec<u8>),
    /// The error type as the daemon sent it (perhaps empty or invalid). Proves nothing.
    Error(Vec<u8>),
    /// Not an answer to our query; with the reason. Proves nothing.
    Invalid(&'static str),
}

/// Encodes a query, without blanks: clients should send no needless white space (RFC 1413 note 1 on
/// syntax), and daemons that use scanf(3) read this form too.
#[must_use]
pub fn encode_query(client_port: u16, server_port: u16) -> Vec<u8> {
    format!("{client_port},{server_port}\r\n").into_bytes()
}

/// Decodes the answer for this pair of ports. Octets after its end of line are ignored.
///
/// # Errors
/// Only `Incomplete`, while there are fewer than [`ANSWER_MAX`] octets and no end of line.
pub fn decode_answer(
    octets: &[u8],
    client_port: u16,
    server_port: u16,
) -> Result<Answer, DecodeError> {
    let Some(len) = octets.iter().take(ANSWER_MAX).position(|&octet| octet == b'\n') else {
        return if octets.len() < ANSWER_MAX {
            Err(DecodeError::Incomplete)
        } else {
            Ok(Answer::Invalid("no end of line in 1000 octets"))
        };
    };
    let line = octets.get(..len).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);

    // A user id may hold colons.
    let mut fields = line.splitn(4, |&octet| octet == b':');
    let mut field = || fields.next().unwrap_or_default();
    let (ports, kind, third, userid) = (field(), trim(field()), field(), trim_start(field()));
    if kind.eq_ignore_ascii_case(b"ERROR") {
        // For any ports: a daemon that could not parse the query cannot repeat them.
        return Ok(Answer::Error(trim(third).to_vec()));
    }
    let asked = [client_port, server_port].map(|port| port.to_string().into_bytes());
    Ok(if !kind.eq_ignore_ascii_case(b"USERID") {
        Answer::Invalid("neither USERID nor ERROR")
    } else if !ports.split(|&octet| octet == b',').map(trim).eq(asked) {
        Answer::Invalid("ports differ from the query")
    } else if userid.is_empty() {
        Answer::Invalid("no user id")
    } else if userid.iter().any(|octet| b"\0\r".contains(octet)) {
        Answer::Invalid("NUL or CR in the user id")
    } else {
        Answer::UserId(userid.to_vec())
    })
}

/// Removes leading white space. Before a user id too, though RFC 1413 counts it as part of the id:
/// most daemons put a blank there, and no user name begins with one.
fn trim_start(mut octets: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = octets {
        octets = rest;
    }
    octets
}

/// Removes white space at both ends of a token.
fn trim(octets: &[u8]) -> &[u8] {
    let mut octets = trim_start(octets);
    while let [rest @ .., b' ' | b'\t'] = octets {
        octets = rest;
    }
    octets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::{prefixes_are_incomplete, survives_random_octets};

    fn decode(octets: &[u8]) -> Result<Answer, DecodeError> {
        decode_answer(octets, 6193, 23)
    }

    fn user(octets: &[u8]) -> Vec<u8> {
        match decode(octets) {
            Ok(Answer::UserId(id)) => id,
            other => panic!("{} gave {other:?}", octets.escape_ascii()),
        }
    }

    fn is_invalid(octets: &[u8], reason: &'static str) {
        assert_eq!(decode(octets), Ok(Answer::Invalid(reason)), "{}", octets.escape_ascii());
    }

    #[test]
    fn ident_02_a_query_has_the_port_on_the_clients_host_first() {
        assert_eq!(encode_query(6193, 23), b"6193,23\r\n");
        assert_eq!(encode_query(65535, 1), b"65535,1\r\n");
    }

    #[test]
    fn ident_07_an_error_proves_nothing() {
        for word in ["INVALID-PORT", "NO-USER", "HIDDEN-USER", "UNKNOWN-ERROR", "XYZZY", ""] {
            for line in [
                format!("6193,23:ERROR:{word}\r\n"),
                format!(" 6193 , 23 : ERROR :\t{word} \r\n"),
                format!("0,0:error:{word}:alice\n"),
            ] {
                let expected = Answer::Error(word.as_bytes().to_vec());
                assert_eq!(decode(line.as_bytes()), Ok(expected), "{line}");
            }
        }
        assert_eq!(decode(b":ERROR\n"), Ok(Answer::Error(Vec::new())));
    }

    #[test]
    fn ident_10_white_space_is_optional_anywhere() {
        for line in [
            "6193,23:USERID:UNIX:alice\r\n",
            "6193, 23 : USERID : UNIX : alice\r\n",
            "6193 , 23 : USERID : UNIX :alice\r\n",
            " \t6193\t,\t23\t:\tUSERID\t:\tUNIX\t:\talice\r\n",
            "  6193  ,  23  :  USERID  :  UNIX  :  alice\r\n",
            "6193,23:USERID:UNIX:alice\n",
            "6193,23:userid:unix:alice\r\n",
        ] {
            assert_eq!(user(line.as_bytes()), b"alice", "{line}");
        }
        for line in [&b"61 93,23:USERID:UNIX:alice\n"[..], b"6193,2 3:USERID:UNIX:alice\n"] {
            is_invalid(line, "ports differ from the query");
        }
        is_invalid(b"6193,23:USER ID:UNIX:alice\n", "neither USERID nor ERROR");
    }

    #[test]
    fn ident_11_opsys_may_be_any_token_and_carry_a_charset() {
        for opsys in ["OTHER", "UNIX,US-ASCII", "UNIX , UTF-8", "VM/CMS", "x", ""] {
            let line = format!("6193,23:USERID:{opsys}:alice\r\n");
            assert_eq!(user(line.as_bytes()), b"alice", "{line}");
        }
    }

    #[test]
    fn ident_12_a_user_id_of_512_octets_and_more_is_accepted() {
        let head = b"6193 , 23 : USERID : UNIX : ";
        for len in [1, 255, 512, 513, ANSWER_MAX - head.len() - 2] {
            let id = vec![b'a'; len];
            assert_eq!(user(&[head, &id[..], b"\r\n"].concat()), id);
        }
    }

    #[test]
    fn ident_13_1000_octets_without_end_of_line_are_invalid() {
        let mut octets = b"6193,23:USERID:UNIX:".to_vec();
        octets.resize(ANSWER_MAX - 1, b'a');
        assert_eq!(decode(&octets), Err(DecodeError::Incomplete));
        assert_eq!(user(&[&octets[..], b"\n"].concat()).len(), ANSWER_MAX - 1 - 20);
        for late in [&b"a"[..], b"a\n", b"\r\n", &[b' '; 5_000]] {
            is_invalid(&[&octets[..], late].concat(), "no end of line in 1000 octets");
        }
    }

    #[test]
    fn ident_14_the_port_pair_must_be_that_of_the_query() {
        for ports in [
            "23,6193",
            "6193,24",
            "6194,23",
            "6193",
            "6193,",
            ",23",
            "",
            ",",
            "6193,23,",
            "6193;23",
            "6193,23,1",
            "+6193,23",
            "-6193,23",
            "71729,23",
            "6193,0x17",
            "6193,65559",
            "6193\0,23",
        ] {
            let line = format!("{ports}:USERID:UNIX:alice\r\n");
            is_invalid(line.as_bytes(), "ports differ from the query");
        }
    }

    #[test]
    fn ident_15_a_user_id_is_taken_octet_by_octet_and_never_empty() {
        for id in ["a:b", "any name here", "alice ", "alice\t", "a,b", "ALICE", "\u{e9}", ":", "-"]
        {
            let line = format!("6193,23:USERID:UNIX: {id}\r\n");
            assert_eq!(user(line.as_bytes()), id.as_bytes());
        }
        assert_eq!(user(b"6193,23:USERID:UNIX:\x01\xff\r\n"), b"\x01\xff");
        for empty in ["", " ", "\t \t"] {
            is_invalid(format!("6193,23:USERID:UNIX:{empty}\r\n").as_bytes(), "no user id");
        }
        for id in ["alice\0", "\0alice", "ali\rce", "\ralice", "alice\r", "\r", "\0"] {
            let line = format!("6193,23:USERID:UNIX:{id}\r\n");
            is_invalid(line.as_bytes(), "NUL or CR in the user id");
        }
    }

    #[test]
    fn a_line_that_is_not_an_answer_proves_nothing() {
        for line in ["", "alice", "6193,23", ":::", "6193,23:UNIX:alice", "6193,23::UNIX:alice"] {
            is_invalid(format!("{line}\r\n").as_bytes(), "neither USERID nor ERROR");
        }
        for line in ["6193,23:USERID", "6193,23:USERID:alice", "6193,23:USERID:UNIX,UTF-8"] {
            is_invalid(format!("{line}\r\n").as_bytes(), "no user id");
        }
    }

    #[test]
    fn only_the_first_line_counts() {
        assert_eq!(user(b"6193,23:USERID:UNIX:alice\r\n6193,23:USERID:UNIX:bob\r\n"), b"alice");
        is_invalid(b"\r\n6193,23:USERID:UNIX:alice\r\n", "neither USERID nor ERROR");
    }

    #[test]
    fn ident_16_every_prefix_of_an_answer_is_incomplete() {
        prefixes_are_incomplete(b"6193 , 23 : USERID : UNIX,US-ASCII : al:ice \r\n", decode);
        prefixes_are_incomplete(b"6193,23:USERID:OTHER:\0\r\r\n", decode);
        prefixes_are_incomplete(b"6193,23:ERROR:NO-USER\r\n", decode);
        prefixes_are_incomplete(b"nonsense\n", decode);
    }

    #[test]
    fn random_octets_never_panic_nor_make_a_user_that_was_not_sent() {
        survives_random_octets(b"6193,23:USERID:UNIX:alice\r\n", |octets| {
            if let Ok(Answer::UserId(id)) = decode(octets) {
                assert!(octets.starts_with(b"6193,23") && !id.is_empty());
                assert!(!id.iter().any(|octet| b"\0\r\n".contains(octet)));
                assert!(octets.windows(id.len()).any(|window| window == id));
            }
        });
    }
}
