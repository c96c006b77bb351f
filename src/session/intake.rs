//! What a client sends before the relay: read under one deadline, decoded message by message, and
//! what comes behind the last one kept for the relay.

use std::cell::Cell;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::net::canonical;
use crate::relay::End;
use crate::session::record::Stop;
use crate::sys::{self, PollFd};
use crate::wait::{Fin, Wait};
use crate::wire::{DecodeError, Reader};

/// Octets a whole handshake may take. The longest there can be, a greeting, a password and a
/// request of version 5, takes 1,032.
const HANDSHAKE_MAX: usize = 1_300;

/// Octets read and thrown away behind a refusal, and how long that may take: closing with octets
/// unread would reset the connection and could destroy the reply on its way.
const DRAIN_MAX: usize = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// The client before the relay: what it has sent and nobody has used yet, and how long it may take.
pub(super) struct Intake<'a> {
    pub(super) stream: TcpStream,
    pub(super) deadline: Instant,
    /// Hangs up when the server ends.
    ended: BorrowedFd<'a>,
    /// What a FIN of the client means while it has others waited for.
    fin: Cell<Fin>,
    /// Octets read and not yet decoded.
    octets: Vec<u8>,
    /// Octets decoded.
    pub(super) taken: usize,
    /// What the last message that could not be decoded had wrong.
    pub(super) fault: Option<DecodeError>,
}

impl<'a> Intake<'a> {
    pub(super) fn new(stream: TcpStream, deadline: Instant, ended: BorrowedFd<'a>) -> Self {
        let fin = Cell::new(Fin::LeavesSoon);
        Self { stream, deadline, ended, fin, octets: Vec::new(), taken: 0, fault: None }
    }

    /// The address at which the client reached this server; loopback for a UNIX socket, which has
    /// none: its client is on this host.
    pub(super) fn local(&self) -> io::Result<SocketAddr> {
        if sys::is_unix(&self.stream)? {
            return Ok((Ipv4Addr::LOCALHOST, 0).into());
        }
        Ok(canonical(self.stream.local_addr()?))
    }

    pub(super) fn first_octet(&mut self) -> Result<u8, Stop> {
        loop {
            match self.octets.first() {
                Some(&octet) => return Ok(octet),
                None => self.read()?,
            }
        }
    }

    /// Decodes one message, reading as much as it takes. Octets behind it stay for the next one or
    /// for the relay.
    pub(super) fn decode<T>(
        &mut self,
        decode: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
    ) -> Result<T, Stop> {
        loop {
            let mut reader = Reader::new(&self.octets);
            match decode(&mut reader) {
                Ok(message) => {
                    let len = reader.consumed();
                    self.taken += len;
                    self.octets.drain(..len);
                    return Ok(message);
                }
                // Every decoder has bounds of its own, which together stay below this one.
                Err(DecodeError::Incomplete) if self.taken + self.octets.len() < HANDSHAKE_MAX => {
                    self.read()?;
                }
                Err(DecodeError::Incomplete) => {
                    self.fault = Some(DecodeError::Overlong);
                    return Err(Stop::refused("protocol", "handshake too long"));
                }
                Err(fault) => {
                    self.fault = Some(fault);
                    return Err(Stop::refused("protocol", fault));
                }
            }
        }
    }

    /// Reads what the client has sent, waiting for it until the deadline.
    fn read(&mut self) -> Result<(), Stop> {
        let mut buffer = [0; HANDSHAKE_MAX];
        let len = match self.wait_and_read(&mut buffer, self.deadline)? {
            Some(Ok(len @ 1..)) => len,
            Some(_) => return Err(Stop::GONE),
            None => return Err(Stop::refused("timeout", "no complete request in time")),
        };
        self.octets.extend_from_slice(buffer.get(..len).unwrap_or_default());
        Ok(())
    }

    /// Ends the handshake: the client, and what it sent behind its request.
    pub(super) fn into_tunnel(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.octets)
    }

    /// Reads once, waiting until `deadline` for something to come; `None` where nothing does.
    ///
    /// # Errors
    /// `Ended`.
    fn wait_and_read(
        &mut self,
        buffer: &mut [u8],
        deadline: Instant,
    ) -> Result<Option<io::Result<usize>>, Stop> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let mut fds = [PollFd::new(&self.stream, sys::POLLIN), PollFd::new(&self.ended, 0)];
            let ready = sys::poll(&mut fds, Some(left));
            let [on_stream, on_ended] = fds.map(|fd| fd.has(!0));
            let result = match ready {
                Ok(_) if on_stream => self.stream.read(buffer),
                Ok(_) if on_ended => return Err(Stop::Ended(End::Stopped)),
                Ok(_) => continue,
                Err(error) => Err(error),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Ok(Some(result)),
            }
        }
    }

    /// A wait of `time` on behalf of the client. What it has sent behind its request makes a FIN a
    /// half-close.
    pub(super) fn wait(&self, time: Duration) -> Wait<'_> {
        match (self.octets.is_empty(), self.fin.get()) {
            (false, _) => self.fin.set(Fin::HalfCloses),
            // What was unread then may have been the request.
            (true, Fin::HalfCloses) => self.fin.set(Fin::LeavesSoon),
            _ => {}
        }
        let Self { stream: client, fin, ended, .. } = self;
        Wait { client, fin, ended: *ended, deadline: Instant::now() + time }
    }

    /// A wait for the peer of a BIND, of which a client that sends no more could not want much.
    pub(super) fn wait_until_fin(&self, time: Duration) -> Wait<'_> {
        let wait = self.wait(time);
        self.fin.set(Fin::Leaves);
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
                Ok(Some(Ok(len @ 1..))) => drained += len,
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::TcpListener;
    use std::os::fd::AsFd as _;

    #[test]
    fn sec_09_a_handshake_ends_at_1300_octets_whatever_a_decoder_says() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        client.write_all(&[1; 5_000]).unwrap();
        let (ended, _open) = io::pipe().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut intake = Intake::new(stream, deadline, ended.as_fd());
        let stop = intake.decode(|_| Err::<(), _>(DecodeError::Incomplete));
        assert!(matches!(stop, Err(Stop::Refused { reason: "protocol", .. })));
        assert!(intake.octets.len() <= 2 * HANDSHAKE_MAX);
    }
}
