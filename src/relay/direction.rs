//! One direction of a relay: passes octets in small pieces, in large ones or by splice(2), and
//! ends. What it shares with the other direction is in [`crate::relay::state`].

use std::cell::Cell;
use std::convert::Infallible;
use std::io::{self, Read as _, Write as _};
use std::mem;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::relay::end::{End, Side};
use crate::relay::linger;
use crate::relay::pool::{BUFFER, PIPE, Pipe, has_to_copy};
use crate::relay::rate::Rate;
use crate::relay::state::Relay;

/// Octets of a small piece. A read that fills it means that more may follow.
pub(super) const SMALL: usize = 1536;

/// Octets within [`WINDOW`] that make a direction worth a pipe.
const BULK: usize = 256 * 1024;

/// How long these octets may take. A slower direction would only keep a pipe from others.
const WINDOW: Duration = Duration::from_secs(1);

/// How long nothing comes before a busy direction counts as quiet.
const QUIET: Duration = Duration::from_millis(100);

/// One direction of a relay.
pub(super) struct Direction {
    pub(super) relay: Arc<Relay>,
    pub(super) from: Side,
    /// Octets that have been read, and are written before any others.
    pub(super) unsent: Vec<u8>,
    /// Whether splice(2) may be used: there is no rate, and no socket has refused it.
    may_splice: Cell<bool>,
}

/// Why a direction has stopped.
pub(super) enum Halt {
    /// The end of input, which the other side is to be sent.
    EndOfInput,
    /// An error of one side.
    Failed(Side, io::Error),
    /// The idle limit.
    Idle,
}

/// Ends the relay if a direction panics.
struct AbortOnPanic<'a>(&'a Relay);

impl Drop for AbortOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.abort(End::Internal);
        }
    }
}

impl Direction {
    /// The direction from this side, from which `unsent` has been read already.
    pub(super) fn new(relay: &Arc<Relay>, from: Side, unsent: Vec<u8>) -> Self {
        let may_splice = Cell::new(relay.limits.rates.is_empty());
        Self { relay: Arc::clone(relay), from, unsent, may_splice }
    }

    pub(super) fn to(&self) -> Side {
        self.from.other()
    }

    /// Passes octets until the end; `octets` is for the small pieces.
    pub(super) fn run(mut self, octets: &mut [u8]) {
        let unsent = mem::take(&mut self.unsent);
        let guard = AbortOnPanic(&self.relay);
        let mut portions = unsent.chunks(self.portion(BUFFER));
        let passed = portions.try_for_each(|octets| self.pass(octets));
        drop(unsent);
        let Err(halt) = passed.and_then(|()| self.copy(octets));
        drop(guard);
        self.end(halt);
    }

    /// Ends this direction, and what has to end with it.
    pub(super) fn end(&self, halt: Halt) {
        let relay = &*self.relay;
        let end = match halt {
            Halt::EndOfInput => {
                if relay.half_close(self.from) {
                    relay.touch(Duration::ZERO);
                    // Fails if the other side is gone, which the other direction will find.
                    let _ = relay.stream(self.to()).shutdown(Shutdown::Write);
                    if linger::watch(&self.relay).is_err() {
                        // Unwatched, the relay might never end.
                        relay.abort(End::Internal);
                    }
                }
                return;
            }
            Halt::Idle => End::Idle,
            Halt::Failed(side, error) => match error.kind() {
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => End::Reset(side),
                _ => End::Lost(side),
            },
        };
        drop(relay.retire());
        relay.abort(end);
    }

    /// Octets to pass at a time, at most `max`.
    fn portion(&self, max: usize) -> usize {
        let rates = self.relay.limits.rates.iter();
        rates.map(|rate| rate.portion()).fold(max, usize::min)
    }

    /// Copies small pieces through `octets`, which is kept while nothing comes; large ones once it
    /// has been filled.
    fn copy(&self, octets: &mut [u8]) -> Result<Infallible, Halt> {
        let mut from = self.relay.stream(self.from);
        let portion = self.portion(octets.len());
        let octets = octets.get_mut(..portion).unwrap_or_default();
        loop {
            let Some(len) = self.received(from.read(octets))? else { continue };
            self.pass(octets.get(..len).unwrap_or_default())?;
            if len == SMALL {
                // While the direction is busy, a time-out means that it goes quiet.
                let _ = from.set_read_timeout(Some(QUIET));
                self.copy_much()?;
                let idle = self.relay.limits.idle;
                let left = idle.map(|idle| self.relay.left(idle).ok_or(Halt::Idle)).transpose()?;
                let _ = from.set_read_timeout(left);
            }
        }
    }

    /// Passes large pieces until the direction goes quiet.
    // Not inlined: its frame need not stay while only small pieces pass.
    #[inline(never)]
    fn copy_much(&self) -> Result<(), Halt> {
        let pool = &self.relay.common.pool;
        let mut buffer = pool.buffer();
        let copied = self.copy_through(&mut buffer);
        pool.keep_buffer(buffer);
        match copied? {
            Some(mut pipe) => {
                let spliced = self.splice(&mut pipe);
                pool.give_back(pipe);
                spliced
            }
            None => Ok(()),
        }
    }

    /// Copies through `buffer` until the direction goes quiet, or until there is so much that it
    /// gets a pipe, which is returned.
    fn copy_through(&self, buffer: &mut [u8]) -> Result<Option<Pipe>, Halt> {
        let mut from = self.relay.stream(self.from);
        let portion = self.portion(buffer.len());
        let octets = buffer.get_mut(..portion).unwrap_or_default();
        let (mut passed, mut since) = (0, Instant::now());
        loop {
            let result = from.read(octets);
            if is_quiet(&result) {
                return Ok(None);
            }
            let Some(len) = self.received(result)? else { continue };
            let begun = Instant::now();
            self.pass(octets.get(..len).unwrap_or_default())?;
            passed += len;
            // A slow reader would only keep a pipe from others.
            if begun.elapsed() < QUIET {
                match passed {
                    ..BULK if since.elapsed() < WINDOW => continue,
                    ..BULK => return Ok(None),
                    _ if self.may_splice.get() => {
                        let pipe = self.relay.common.pool.pipe();
                        if pipe.is_some() {
                            return Ok(pipe);
                        }
                        // A pipe may be free later.
                    }
                    _ => {}
                }
            }
            (passed, since) = (0, Instant::now());
        }
    }

    /// Moves octets through `pipe` until the direction goes quiet, or its reader slow.
    fn splice(&self, pipe: &mut Pipe) -> Result<(), Halt> {
        let (from, to) = (self.relay.stream(self.from), self.relay.stream(self.to()));
        let (mut passed, mut since) = (0, Instant::now());
        loop {
            // Until the pipe is empty the relay counts as quiet, so with a limit on that the pipe
            // must not hold too much.
            let is_limited = self.relay.limits.idle.is_some() || self.relay.is_half_closed();
            let result = pipe.fill(from, if is_limited { BUFFER } else { PIPE });
            match &result {
                // The end of input, or an urgent octet comes next: read(2) tells which.
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if has_to_copy(error) => {
                    self.give_up_splice(error);
                    return Ok(());
                }
                _ => {}
            }
            passed += self.received(result)?.unwrap_or_default();
            let begun = Instant::now();
            while pipe.held() > 0 {
                match pipe.drain(to) {
                    Err(error) if has_to_copy(&error) => {
                        self.give_up_splice(&error);
                        return self.copy_held(pipe);
                    }
                    result => self.sent(result)?,
                };
            }
            let is_over = since.elapsed() >= WINDOW;
            if begun.elapsed() >= QUIET || is_over && passed < BULK {
                return Ok(());
            }
            if is_over {
                (passed, since) = (0, Instant::now());
            }
        }
    }

    /// Has this direction copy from now on, and all others too if splice(2) does not work here at
    /// all.
    fn give_up_splice(&self, error: &io::Error) {
        self.may_splice.set(false);
        self.relay.common.pool.give_up_splice(error);
    }

    /// Copies what `pipe` holds.
    fn copy_held(&self, pipe: &mut Pipe) -> Result<(), Halt> {
        let pool = &self.relay.common.pool;
        let mut buffer = pool.buffer();
        let mut copied = Ok(());
        while pipe.held() > 0 && copied.is_ok() {
            copied = match pipe.read(&mut buffer) {
                Ok(len) => self.pass(buffer.get(..len).unwrap_or_default()),
                Err(error) => self.failed(self.from, error).map_or(Ok(()), Err),
            };
        }
        pool.keep_buffer(buffer);
        copied
    }

    /// Writes `octets` as soon as the rates allow.
    fn pass(&self, mut octets: &[u8]) -> Result<(), Halt> {
        self.take_turn(octets.len())?;
        let mut to = self.relay.stream(self.to());
        while !octets.is_empty() {
            let len = self.sent(to.write(octets))?;
            octets = octets.get(len..).unwrap_or_default();
        }
        Ok(())
    }

    /// Charges this many octets to the rates, and waits until they may pass.
    fn take_turn(&self, octets: usize) -> Result<(), Halt> {
        let relay = &*self.relay;
        let charge = |rate: &Arc<Rate>| rate.charge(self.from, octets, Instant::now());
        let wait = relay.limits.rates.iter().map(charge).max().unwrap_or_default();
        if wait.is_zero() {
            return Ok(());
        }
        relay.touch(wait);
        if relay.wait(wait) { Err(Halt::EndOfInput) } else { Ok(()) }
    }

    /// Evaluates a write: counts the octets and returns how many.
    pub(super) fn sent(&self, result: io::Result<usize>) -> Result<usize, Halt> {
        let counter = match self.from {
            Side::Client => &self.relay.traffic.up,
            Side::Target => &self.relay.traffic.down,
        };
        match result {
            Ok(len) => {
                counter.fetch_add(u64::try_from(len).unwrap_or(0), Ordering::Relaxed);
                self.relay.touch(Duration::ZERO);
                Ok(len)
            }
            Err(error) => self.failed(self.to(), error).map_or(Ok(0), Err),
        }
    }

    /// Evaluates a read: returns how many octets, or `None` if it is to be repeated.
    pub(super) fn received(&self, result: io::Result<usize>) -> Result<Option<usize>, Halt> {
        match result {
            Ok(0) if self.relay.is_reset(self.from) => {
                Err(Halt::Failed(self.from, io::ErrorKind::ConnectionReset.into()))
            }
            Ok(0) => Err(Halt::EndOfInput),
            Ok(len) => Ok(Some(len)),
            Err(error) => self.failed(self.from, error).map_or(Ok(None), Err),
        }
    }

    /// Why an error of `side` ends this direction; `None` if it does not. After a time-out with
    /// part of the idle limit left, the next wait is set to that part.
    fn failed(&self, side: Side, error: io::Error) -> Option<Halt> {
        match (error.kind(), self.relay.limits.idle) {
            (io::ErrorKind::Interrupted, _) => None,
            (io::ErrorKind::WouldBlock, Some(idle)) => {
                let Some(left) = self.relay.left(idle) else { return Some(Halt::Idle) };
                let leg = self.relay.stream(side);
                let set = if side == self.from {
                    leg.set_read_timeout(Some(left))
                } else {
                    leg.set_write_timeout(Some(left))
                };
                set.err().map(|error| Halt::Failed(side, error))
            }
            _ => Some(Halt::Failed(side, error)),
        }
    }
}

/// Whether the call timed out, or would have had to wait.
pub(super) fn is_quiet(result: &io::Result<usize>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
