//! Asks the host of a client for the owner of its connection (RFC 1413).
//!
//! The answer is only as trustworthy as that host and the network to it. The messages are in
//! [`crate::wire::ident`]. The caller connects to port 113 from the address that the client
//! reached, since the daemon looks for a connection between these two addresses. The caller also
//! compares the user id with the claim of the client.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

use crate::log::Escaped;
use crate::sys;
use crate::wait::{Wait, WaitError};
use crate::wire::ident::{ANSWER_MAX, Answer, decode_answer, encode_query};

/// Most octets of an error type in a message: no token is longer (RFC 1413 note 3 on syntax).
const ERROR_MAX: usize = 64;

/// The reason why the owner of the connection is not known.
#[derive(Debug)]
pub enum IdentError {
    /// The client uses a UNIX socket: there is no host to ask.
    NoHost,
    /// The wait ended before the answer was complete.
    Wait(WaitError),
    /// The daemon closed before the end of line, which means the same as UNKNOWN-ERROR.
    Closed,
    /// The connection broke, which means the same as UNKNOWN-ERROR, or a system call failed.
    Failed(io::Error),
    /// The daemon answered with this error type, in octets of a peer.
    Refused(Vec<u8>),
    /// The daemon sent something else than an answer to the query; with the reason.
    Invalid(&'static str),
}

impl From<io::Error> for IdentError {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<WaitError> for IdentError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::Failed(error) => Self::Failed(error),
            _ => Self::Wait(error),
        }
    }
}

impl fmt::Display for IdentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHost => f.write_str("the client has no address"),
            Self::Wait(_) => f.write_str("identd did not answer in time"),
            Self::Closed => f.write_str("identd closed without an answer"),
            Self::Failed(error) => write!(f, "identd connection failed: {error}"),
            Self::Refused(word) => {
                let cut = word.get(..ERROR_MAX).unwrap_or(word);
                write!(f, "identd answered with error {:#}", Escaped(cut))
            }
            Self::Invalid(reason) => write!(f, "identd answer is invalid: {reason}"),
        }
    }
}

/// Asks the daemon that `stream` is connected to for the owner of the connection between
/// `client_port` on its host and `server_port` on this one. The user id is not empty.
///
/// # Errors
/// In all other cases: only a user id for these ports proves anything.
pub fn ask(
    mut stream: TcpStream,
    client_port: u16,
    server_port: u16,
    wait: &Wait<'_>,
) -> Result<Vec<u8>, IdentError> {
    stream.set_nonblocking(true).map_err(IdentError::Failed)?;
    // A new connection takes these few octets at once. An error is left to the read below: a daemon
    // that needs no query may have answered and closed already.
    let _ = stream.write(&encode_query(client_port, server_port));

    let mut buffer = [0; ANSWER_MAX];
    let mut len = 0;
    loop {
        let octets = buffer.get(..len).unwrap_or_default();
        match decode_answer(octets, client_port, server_port) {
            Ok(Answer::UserId(id)) => return Ok(id),
            Ok(Answer::Error(word)) => return Err(IdentError::Refused(word)),
            Ok(Answer::Invalid(reason)) => return Err(IdentError::Invalid(reason)),
            Err(_incomplete) => {}
        }
        wait.on(&stream, sys::POLLIN)?;
        match stream.read(buffer.get_mut(len..).unwrap_or_default()) {
            Ok(0) => return Err(IdentError::Closed),
            Ok(more) => len += more,
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                _ => return Err(IdentError::Failed(error)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::testing::Scene;
    use std::io::{BufRead as _, BufReader};
    use std::net::TcpListener;
    use std::thread;
    use std::time::{Duration, Instant};

    const ANSWER: &[u8] = b"6193, 23 : USERID : UNIX : alice\r\n";
    const AMPLE: Duration = Duration::from_secs(5);
    const SHORT: Duration = Duration::from_millis(200);

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (stream, listener.accept().unwrap().0)
    }

    fn query(stream: &TcpStream) -> String {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }

    /// Asks a daemon on behalf of a client that stays, for `time` at most.
    fn ask_for(time: Duration, stream: TcpStream) -> Result<Vec<u8>, IdentError> {
        let millis = u64::try_from(time.as_millis()).unwrap();
        ask(stream, 6193, 23, &Scene::new().wait(millis))
    }

    /// Asks this daemon, which must end after the query.
    fn ask_daemon(
        time: Duration,
        daemon: impl FnOnce(TcpStream) + Send + 'static,
    ) -> Result<Vec<u8>, IdentError> {
        let (stream, accepted) = pair();
        let daemon = thread::spawn(|| daemon(accepted));
        let begun = Instant::now();
        let result = ask_for(time, stream);
        assert!(begun.elapsed() < time + AMPLE);
        daemon.join().unwrap();
        result
    }

    #[test]
    fn ident_02_a_whole_answer_to_the_query_is_the_user() {
        let result = ask_daemon(AMPLE, |mut stream| {
            assert_eq!(query(&stream), "6193,23\r\n");
            stream.write_all(ANSWER).unwrap();
            // A daemon may wait for another query: the answer counts before its close.
            assert_eq!(query(&stream), "");
        });
        assert_eq!(result.unwrap(), b"alice");
    }

    #[test]
    fn ident_07_an_error_is_shown_escaped_and_cut() {
        for (sent, shown) in
            [("NO-USER", "NO-USER"), ("", "-"), ("X\n", "X"), ("X y\u{7}", "X\\x20y\\x07")]
        {
            let result = ask_daemon(AMPLE, move |mut stream| {
                query(&stream);
                stream.write_all(format!("6193,23:ERROR:{sent}\r\n").as_bytes()).unwrap();
            });
            let error = result.unwrap_err();
            assert!(matches!(error, IdentError::Refused(_)), "{error:?}");
            assert_eq!(error.to_string(), format!("identd answered with error {shown}"));
        }
        let long = IdentError::Refused(vec![b'\n'; ANSWER_MAX]).to_string();
        assert!(long.ends_with(&"\\x0a".repeat(ERROR_MAX)) && long.len() < 300, "{long}");
    }

    #[test]
    fn ident_08_a_close_before_the_end_of_line_proves_nothing() {
        for len in [0, 1, ANSWER.len() - 2, ANSWER.len() - 1] {
            let result = ask_daemon(AMPLE, move |mut stream| {
                query(&stream);
                stream.write_all(&ANSWER[..len]).unwrap();
            });
            assert!(matches!(result, Err(IdentError::Closed)), "{len}: {result:?}");
        }
    }

    #[test]
    fn ident_08_a_reset_proves_nothing() {
        for len in [0, ANSWER.len() - 2] {
            let result = ask_daemon(AMPLE, move |mut stream| {
                query(&stream);
                stream.write_all(&ANSWER[..len]).unwrap();
                sys::set_linger_zero(&stream).unwrap();
            });
            assert!(matches!(result, Err(IdentError::Failed(_))), "{len}: {result:?}");
        }
    }

    #[test]
    fn ident_09_a_silent_daemon_is_waited_for_until_the_deadline() {
        let begun = Instant::now();
        let result = ask_daemon(SHORT, |stream| {
            query(&stream);
            assert_eq!(query(&stream), "");
        });
        assert!(matches!(result, Err(IdentError::Wait(WaitError::TimedOut))), "{result:?}");
        assert!(begun.elapsed() >= SHORT);
    }

    #[test]
    fn ident_09_a_trickle_does_not_delay_the_deadline() {
        let result = ask_daemon(SHORT, |mut stream| {
            while stream.write_all(b" ").is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
        assert!(matches!(result, Err(IdentError::Wait(WaitError::TimedOut))), "{result:?}");
    }

    #[test]
    fn ident_09_a_full_send_buffer_does_not_delay_the_deadline() {
        let (mut stream, _daemon) = pair();
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[0; 65_536]).is_ok() {}
        let begun = Instant::now();
        let result = ask_for(SHORT, stream);
        assert!(matches!(result, Err(IdentError::Wait(WaitError::TimedOut))), "{result:?}");
        assert!(begun.elapsed() < SHORT + AMPLE);
    }

    #[test]
    fn ident_13_an_endless_answer_is_invalid() {
        let result = ask_daemon(AMPLE, |mut stream| {
            query(&stream);
            stream.write_all(b"6193,23:USERID:UNIX:").unwrap();
            while stream.write_all(&[b'a'; 100]).is_ok() {}
        });
        assert!(
            matches!(result, Err(IdentError::Invalid("no end of line in 1000 octets"))),
            "{result:?}"
        );
    }

    #[test]
    fn ident_14_an_answer_for_other_ports_proves_nothing() {
        let result = ask_daemon(AMPLE, |mut stream| {
            query(&stream);
            stream.write_all(b"23,6193:USERID:UNIX:alice\r\n").unwrap();
        });
        let error = result.unwrap_err();
        assert_eq!(error.to_string(), "identd answer is invalid: ports differ from the query");
    }

    #[test]
    fn ident_16_an_answer_may_come_octet_by_octet() {
        let result = ask_daemon(AMPLE, |mut stream| {
            stream.set_nodelay(true).unwrap();
            query(&stream);
            for octet in ANSWER {
                stream.write_all(&[*octet]).unwrap();
                thread::sleep(Duration::from_millis(1));
            }
        });
        assert_eq!(result.unwrap(), b"alice");
    }

    #[test]
    fn an_answer_before_the_query_counts_even_if_the_daemon_has_closed() {
        for reset in [false, true] {
            let (stream, mut daemon) = pair();
            daemon.write_all(ANSWER).unwrap();
            if reset {
                sys::set_linger_zero(&daemon).unwrap();
            }
            drop(daemon);
            assert_eq!(ask_for(AMPLE, stream).unwrap(), b"alice");
        }
    }
}
