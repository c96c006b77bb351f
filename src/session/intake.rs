//! The client's connection before the relay: reads and decodes messages under one deadline, and
//! keeps the octets after the last message for the relay. All messages to the client are sent here.

use std::cell::Cell;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::net::{Stream, canonical};
use crate::relay::{End, Leg};
use crate::session::record::{Record, Stop};
use crate::sys::{self, PollFd};
use crate::wait::{Fin, Wait};
use crate::wire::reply::ReplyCode;
use crate::wire::{DecodeError, Destination, Reader};

/// The most octets read at once: enough for every message of a SOCKS client in one piece.
const READ_MAX: usize = 1_300;

/// The most octets discarded after a refusal: closing with unread octets resets the connection,
/// which could destroy the reply on its way.
const DRAIN_MAX: usize = 64 * 1024;

/// The time that may take.
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// The client's connection before the relay, with its deadline.
pub(super) struct Intake<'a> {
    stream: Stream,
    /// The deadline of the handshake.
    deadline: Instant,
    /// Hangs up when the server ends.
    ended: BorrowedFd<'a>,
    /// The meaning of a FIN during a wait on behalf of the client.
    fin: Cell<Fin>,
    /// Octets read and not yet decoded.
    octets: Vec<u8>,
}

/// Why a message from the client could not be read, or one to it not be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// The client left.
    Gone,
    /// The server ends.
    Stopped,
    /// The deadline passed.
    TimedOut,
    /// The message cannot be decoded.
    Fault(DecodeError),
}

impl From<Unread> for Stop {
    fn from(error: Unread) -> Self {
        match error {
            Unread::Gone => Self::GONE,
            Unread::Stopped => Self::Ended(End::Stopped),
            Unread::TimedOut => Self::refused("timeout", "no complete request in time"),
            Unread::Fault(error) => Self::refused("protocol", error),
        }
    }
}

impl<'a> Intake<'a> {
    pub(super) fn new(stream: Stream, deadline: Instant, ended: BorrowedFd<'a>) -> Self {
        let fin = Cell::new(Fin::GoneAfterGrace);
        Self { stream, deadline, ended, fin, octets: Vec::new() }
    }

    /// The server's address of the connection; loopback for a UNIX socket, which has no address and
    /// whose client is on this host.
    pub(super) fn local(&self) -> io::Result<SocketAddr> {
        if sys::is_unix(&self.stream)? {
            return Ok((Ipv4Addr::LOCALHOST, 0).into());
        }
        Ok(canonical(self.stream.local_addr()?))
    }

    /// The next octet, without consuming it.
    ///
    /// # Errors
    /// `Gone`, `Stopped`, `TimedOut`.
    pub(super) fn peek_octet(&mut self) -> Result<u8, Unread> {
        loop {
            match self.octets.first() {
                Some(&octet) => return Ok(octet),
                None => self.read()?,
            }
        }
    }

    /// Reads and decodes one message of at most `max` octets. The octets after it remain for the
    /// next message or for the relay.
    ///
    /// # Errors
    /// Every [`Unread`]; `Overlong` if the decoder asks for more than `max` octets.
    pub(super) fn decode<T>(
        &mut self,
        max: usize,
        decode: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
    ) -> Result<T, Unread> {
        loop {
            let mut reader = Reader::new(&self.octets);
            match decode(&mut reader) {
                Ok(message) => {
                    self.octets.drain(..reader.consumed());
                    return Ok(message);
                }
                Err(DecodeError::Incomplete) if self.octets.len() < max => self.read()?,
                // Every decoder has bounds of its own; this is the last resort.
                Err(DecodeError::Incomplete) => {
                    return Err(Unread::Fault(DecodeError::Overlong));
                }
                Err(error) => return Err(Unread::Fault(error)),
            }
        }
    }

    /// Reads once into `octets`, waiting until the deadline.
    fn read(&mut self) -> Result<(), Unread> {
        let mut buffer = [0; READ_MAX];
        let len = self.wait_and_read(&mut buffer, self.deadline)?;
        self.octets.extend_from_slice(buffer.get(..len).unwrap_or_default());
        Ok(())
    }

    /// Sends a whole message. This does not block: all messages before the relay fit into the send
    /// buffer of a new connection.
    ///
    /// # Errors
    /// `Gone`.
    pub(super) fn send(&mut self, message: &[u8]) -> Result<(), Unread> {
        self.stream.write_all(message).map_err(|_| Unread::Gone)
    }

    /// The client's side of the relay: the connection, and the octets after the request.
    pub(super) fn into_leg(self) -> Leg {
        Leg { stream: self.stream, unread: self.octets }
    }

    /// Sends a reply and notes its code.
    ///
    /// # Errors
    /// `Gone`.
    pub(super) fn reply(
        &mut self,
        record: &mut Record,
        code: ReplyCode,
        bnd: &Destination,
    ) -> Result<(), Unread> {
        record.reply = Some(code.octet());
        self.send(&code.encode(bnd))
    }

    /// Reads once, waiting until `deadline`; returns the number of octets.
    ///
    /// # Errors
    /// `Gone`, `Stopped`, `TimedOut`.
    fn wait_and_read(&mut self, buffer: &mut [u8], deadline: Instant) -> Result<usize, Unread> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Unread::TimedOut);
            }
            let mut fds = [PollFd::new(&self.stream, sys::POLLIN), PollFd::new(&self.ended, 0)];
            let ready = sys::poll(&mut fds, Some(left));
            let [on_stream, on_ended] = fds.map(|fd| fd.has(!0));
            let result = match ready {
                Ok(_) if on_stream => self.stream.read(buffer),
                Ok(_) if on_ended => return Err(Unread::Stopped),
                Ok(_) => continue,
                Err(error) => Err(error),
            };
            match result {
                Ok(len @ 1..) => return Ok(len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return Err(Unread::Gone),
            }
        }
    }

    /// A wait as [`Intake::wait`], until the deadline of the handshake.
    pub(super) fn wait_in_handshake(&self) -> Wait<'_> {
        Wait { deadline: self.deadline, ..self.wait(Duration::ZERO) }
    }

    /// A wait of at most `time` on behalf of the client. A FIN is a half-close if octets follow the
    /// request.
    pub(super) fn wait(&self, time: Duration) -> Wait<'_> {
        match (self.octets.is_empty(), self.fin.get()) {
            (false, _) => self.fin.set(Fin::HalfClose),
            // The octets that made a FIN a half-close may have been the request itself.
            (true, Fin::HalfClose) => self.fin.set(Fin::GoneAfterGrace),
            _ => {}
        }
        let Self { stream: client, fin, ended, .. } = self;
        Wait { client, fin, ended: *ended, deadline: Instant::now() + time }
    }

    /// A wait for the peer of a BIND, which a FIN ends at once: a client that has ended its output
    /// has little use for the peer.
    pub(super) fn wait_until_fin(&self, time: Duration) -> Wait<'_> {
        let wait = self.wait(time);
        self.fin.set(Fin::Gone);
        wait
    }

    /// Ends the output after a refusal, and discards the client's input, within bounds.
    // Not inlined, so that its buffer takes no stack during the relay.
    #[inline(never)]
    pub(super) fn drain(&mut self) {
        if self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + DRAIN_TIME;
        let mut buffer = [0; 4096];
        let mut drained = 0;
        while drained < DRAIN_MAX {
            match self.wait_and_read(&mut buffer, deadline) {
                Ok(len) => drained += len,
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    #[test]
    fn sec_09_a_message_is_read_up_to_its_bound_even_if_the_decoder_wants_more() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        client.write_all(&[1; 5_000]).unwrap();
        let (ended, _open) = io::pipe().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut intake = Intake::new(stream, deadline, ended.as_fd());
        let decoded = intake.decode(300, |_| Err::<(), _>(DecodeError::Incomplete));
        assert_eq!(decoded, Err(Unread::Fault(DecodeError::Overlong)));
        assert!(intake.octets.len() < 300 + READ_MAX);
    }
}
