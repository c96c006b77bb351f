//! A client before the relay: what it sends is read under one deadline and decoded message by
//! message, and what comes after the last one is kept for the relay. All that is ever written to a
//! client is written here.

use std::cell::Cell;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::net::canonical;
use crate::relay::{End, Leg};
use crate::session::record::{Record, Stop};
use crate::sys::{self, PollFd};
use crate::wait::{Fin, Wait};
use crate::wire::reply::ReplyCode;
use crate::wire::{DecodeError, Destination, Reader};

/// Octets read at once. The longest handshake there can be, a greeting, a password and a request of
/// version 5, has 1,032.
const READ: usize = 1_300;

/// Octets read and thrown away behind a refusal, and how long that may take: closing with octets
/// unread would reset the connection and could destroy the reply on its way.
const DRAIN_MAX: usize = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// The client before the relay: what it has sent and nobody has used yet, and how long it may take.
pub(super) struct Intake<'a> {
    stream: TcpStream,
    /// When the handshake has to be complete.
    deadline: Instant,
    /// Hangs up when the server ends.
    ended: BorrowedFd<'a>,
    /// What a FIN of the client means while it has others waited for.
    fin: Cell<Fin>,
    /// Octets read and not yet decoded.
    octets: Vec<u8>,
}

/// Why a message of the client could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// The client left.
    Gone,
    /// The server ends.
    Stopped,
    /// It did not come in time.
    TimedOut,
    /// It cannot be decoded.
    Fault(DecodeError),
}

impl From<Unread> for Stop {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Gone => Self::GONE,
            Unread::Stopped => Self::Ended(End::Stopped),
            Unread::TimedOut => Self::refused("timeout", "no complete request in time"),
            Unread::Fault(fault) => Self::refused("protocol", fault),
        }
    }
}

impl<'a> Intake<'a> {
    pub(super) fn new(stream: TcpStream, deadline: Instant, ended: BorrowedFd<'a>) -> Self {
        let fin = Cell::new(Fin::GoneAfterGrace);
        Self { stream, deadline, ended, fin, octets: Vec::new() }
    }

    /// The address at which the client reached this server; loopback for a UNIX socket, which has
    /// none: its client is on this host.
    pub(super) fn local(&self) -> io::Result<SocketAddr> {
        if sys::is_unix(&self.stream)? {
            return Ok((Ipv4Addr::LOCALHOST, 0).into());
        }
        Ok(canonical(self.stream.local_addr()?))
    }

    /// The first octet there is, which stays.
    ///
    /// # Errors
    /// `Gone`, `Stopped`, `TimedOut`.
    pub(super) fn first_octet(&mut self) -> Result<u8, Unread> {
        loop {
            match self.octets.first() {
                Some(&octet) => return Ok(octet),
                None => self.read()?,
            }
        }
    }

    /// Decodes one message of at most `max` octets, reading as much as it takes. Octets behind it
    /// stay for the next one or for the relay.
    ///
    /// # Errors
    /// Every [`Unread`]; `Overlong` where the decoder wants more than `max` octets.
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
                // Every decoder has bounds of its own, which together stay below this one.
                Err(DecodeError::Incomplete) if self.octets.len() < max => self.read()?,
                Err(DecodeError::Incomplete) => return Err(Unread::Fault(DecodeError::Overlong)),
                Err(fault) => return Err(Unread::Fault(fault)),
            }
        }
    }

    /// Reads what the client has sent, waiting for it until the deadline.
    fn read(&mut self) -> Result<(), Unread> {
        let mut buffer = [0; READ];
        let len = self.wait_and_read(&mut buffer, self.deadline)?;
        self.octets.extend_from_slice(buffer.get(..len).unwrap_or_default());
        Ok(())
    }

    /// Writes a whole message. All that is ever written before the relay fits into the send buffer
    /// of a new connection, so this does not wait.
    ///
    /// # Errors
    /// `Gone`.
    pub(super) fn send(&mut self, message: &[u8]) -> Result<(), Unread> {
        self.stream.write_all(message).map_err(|_| Unread::Gone)
    }

    /// Ends the handshake: the client, and what it sent behind its request.
    pub(super) fn into_leg(self) -> Leg {
        Leg { stream: self.stream, unread: self.octets }
    }

    /// Writes a reply, and notes its code.
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

    /// Reads once, waiting until `deadline` for something to come; returns how many octets came.
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

    /// A wait on behalf of the client until the handshake's deadline; as [`Intake::wait`].
    pub(super) fn wait_in_handshake(&self) -> Wait<'_> {
        Wait { deadline: self.deadline, ..self.wait(Duration::ZERO) }
    }

    /// A wait of `time` on behalf of the client. What it has sent behind its request makes a FIN a
    /// half-close.
    pub(super) fn wait(&self, time: Duration) -> Wait<'_> {
        match (self.octets.is_empty(), self.fin.get()) {
            (false, _) => self.fin.set(Fin::HalfClose),
            // What was unread then may have been the request.
            (true, Fin::HalfClose) => self.fin.set(Fin::GoneAfterGrace),
            _ => {}
        }
        let Self { stream: client, fin, ended, .. } = self;
        Wait { client, fin, ended: *ended, deadline: Instant::now() + time }
    }

    /// A wait for the peer of a BIND, of which a client that sends no more could not want much.
    pub(super) fn wait_until_fin(&self, time: Duration) -> Wait<'_> {
        let wait = self.wait(time);
        self.fin.set(Fin::Gone);
        wait
    }

    /// After a refusal: ends the output and reads away what the client still sends, within bounds.
    // Its buffer need not stay while octets are relayed.
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
    use std::net::TcpListener;
    use std::os::fd::AsFd as _;

    #[test]
    fn sec_09_a_message_is_read_up_to_its_bound_whatever_a_decoder_says() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        client.write_all(&[1; 5_000]).unwrap();
        let (ended, _open) = io::pipe().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut intake = Intake::new(stream, deadline, ended.as_fd());
        let unread = intake.decode(300, |_| Err::<(), _>(DecodeError::Incomplete));
        assert_eq!(unread, Err(Unread::Fault(DecodeError::Overlong)));
        assert!(intake.octets.len() < 300 + READ);
    }
}
