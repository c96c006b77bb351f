//! One direction of a relay: how it passes octets on, little or much at a time, and how it ends.

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
use crate::relay::shared::Shared;

/// Octets that are read at once while nothing tells that there may be more to come.
pub(super) const SMALL: usize = 1536;

/// Octets that pass before a direction is taken for one with much to pass, and how long they may take.
/// Whoever has less than that would only keep a pipe from others.
const BULK: usize = 256 * 1024;
const WINDOW: Duration = Duration::from_secs(1);

/// How long nothing comes before a busy direction is taken for a quiet one.
const QUIET: Duration = Duration::from_millis(100);

/// One direction of a relay.
pub(super) struct Direction {
    pub(super) shared: Arc<Shared>,
    pub(super) from: Side,
    /// Octets that have been read and are to be written before any others.
    pub(super) unsent: Vec<u8>,
    /// Whether much may be spliced: not where it has to keep to a rate, nor from or to a socket that
    /// cannot be.
    may_splice: Cell<bool>,
}

/// Why a direction stopped copying.
pub(super) enum Halt {
    /// End of input, to be carried to the other side.
    EndOfInput,
    /// An error of one side.
    Failed(Side, io::Error),
    /// The idle limit.
    Idle,
}

/// Ends a relay one of whose directions panics.
struct AbortOnPanic<'a>(&'a Shared);

impl Drop for AbortOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.abort(End::Internal);
        }
    }
}

impl Direction {
    /// The direction from this side, of which `unsent` has been read already.
    pub(super) fn new(shared: &Arc<Shared>, from: Side, unsent: Vec<u8>) -> Self {
        let may_splice = Cell::new(shared.limits.rates.is_empty());
        Self { shared: Arc::clone(shared), from, unsent, may_splice }
    }

    pub(super) fn to(&self) -> Side {
        self.from.other()
    }

    /// Copies to the end, through `octets` while there is little to copy.
    pub(super) fn run(mut self, octets: &mut [u8]) {
        let unsent = mem::take(&mut self.unsent);
        let guard = AbortOnPanic(&self.shared);
        let mut portions = unsent.chunks(self.portion(BUFFER));
        let passed = portions.try_for_each(|octets| self.pass(octets));
        drop(unsent);
        let Err(halt) = passed.and_then(|()| self.copy(octets));
        drop(guard);
        self.end(halt);
    }

    /// Sees to what comes of the end of this direction.
    pub(super) fn end(&self, halt: Halt) {
        let shared = &*self.shared;
        let end = match halt {
            Halt::EndOfInput => {
                if shared.half_close(self.from) {
                    shared.touch(Duration::ZERO);
                    // Fails where the other side is gone already, which its own direction will tell.
                    let _ = shared.stream(self.to()).shutdown(Shutdown::Write);
                    if linger::watch(&self.shared).is_err() {
                        // Nothing would ever end it.
                        shared.abort(End::Internal);
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
        drop(shared.retire());
        shared.abort(end);
    }

    /// Octets to pass at a time.
    fn portion(&self, max: usize) -> usize {
        let rates = self.shared.limits.rates.iter();
        rates.map(|rate| rate.portion()).fold(max, usize::min)
    }

    /// Copies through `octets`, small enough to be held while nothing comes. Once that is filled
    /// there may be more to come.
    fn copy(&self, octets: &mut [u8]) -> Result<Infallible, Halt> {
        let mut from = self.shared.stream(self.from);
        let portion = self.portion(octets.len());
        let octets = octets.get_mut(..portion).unwrap_or_default();
        loop {
            let Some(len) = self.received(from.read(octets))? else { continue };
            self.pass(octets.get(..len).unwrap_or_default())?;
            if len == SMALL {
                // While it is busy, time-outs mean that it goes quiet.
                let _ = from.set_read_timeout(Some(QUIET));
                self.copy_much()?;
                let idle = self.shared.limits.idle;
                let left = idle.map(|idle| self.shared.left(idle).ok_or(Halt::Idle)).transpose()?;
                let _ = from.set_read_timeout(left);
            }
        }
    }

    /// Passes on what comes, much at a time, until it goes quiet.
    fn copy_much(&self) -> Result<(), Halt> {
        let pool = &self.shared.common.pool;
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

    /// Copies through `buffer` until it goes quiet, or until so much has come that a pipe is better.
    fn copy_through(&self, buffer: &mut [u8]) -> Result<Option<Pipe>, Halt> {
        let mut from = self.shared.stream(self.from);
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
            // Whoever takes octets slowly would only keep a pipe from others.
            if begun.elapsed() < QUIET {
                match passed {
                    ..BULK if since.elapsed() < WINDOW => continue,
                    ..BULK => return Ok(None),
                    _ if self.may_splice.get() => {
                        let pipe = self.shared.common.pool.pipe();
                        if pipe.is_some() {
                            return Ok(pipe);
                        }
                        // Another one may be done with its own later.
                    }
                    _ => {}
                }
            }
            (passed, since) = (0, Instant::now());
        }
    }

    /// Moves octets through `pipe` until it goes quiet, or whoever is to take them slow.
    fn splice(&self, pipe: &mut Pipe) -> Result<(), Halt> {
        let (from, to) = (self.shared.stream(self.from), self.shared.stream(self.to()));
        let (mut passed, mut since) = (0, Instant::now());
        loop {
            // Until all that is held has been taken nothing tells that any has, and a limit on quiet
            // might be met.
            let is_limited = self.shared.limits.idle.is_some() || self.shared.is_half_closed();
            let result = pipe.fill(from, if is_limited { BUFFER } else { PIPE });
            match &result {
                // No octets are the end of input, or an urgent one comes next: read(2) knows.
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

    /// Splices no more, and has others do so no more where that does not work here at all.
    fn give_up_splice(&self, error: &io::Error) {
        self.may_splice.set(false);
        self.shared.common.pool.give_up_splice(error);
    }

    /// Copies what `pipe` holds.
    fn copy_held(&self, pipe: &mut Pipe) -> Result<(), Halt> {
        let pool = &self.shared.common.pool;
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

    /// Writes `octets` as soon as the rates let them pass.
    fn pass(&self, mut octets: &[u8]) -> Result<(), Halt> {
        self.take_turn(octets.len())?;
        let mut to = self.shared.stream(self.to());
        while !octets.is_empty() {
            let len = self.sent(to.write(octets))?;
            octets = octets.get(len..).unwrap_or_default();
        }
        Ok(())
    }

    /// Charges so many octets to the rates, and waits until they may pass.
    fn take_turn(&self, octets: usize) -> Result<(), Halt> {
        let shared = &*self.shared;
        let charge = |rate: &Arc<Rate>| rate.charge(self.from, octets, Instant::now());
        let wait = shared.limits.rates.iter().map(charge).max().unwrap_or_default();
        if wait.is_zero() {
            return Ok(());
        }
        shared.touch(wait);
        if shared.wait(wait) { Err(Halt::EndOfInput) } else { Ok(()) }
    }

    /// Counts what was written, and returns how many octets that were.
    pub(super) fn sent(&self, result: io::Result<usize>) -> Result<usize, Halt> {
        let counter = match self.from {
            Side::Client => &self.shared.traffic.up,
            Side::Target => &self.shared.traffic.down,
        };
        match result {
            Ok(len) => {
                counter.fetch_add(u64::try_from(len).unwrap_or(0), Ordering::Relaxed);
                self.shared.touch(Duration::ZERO);
                Ok(len)
            }
            Err(error) => self.failed(self.to(), error).map_or(Ok(0), Err),
        }
    }

    /// How many octets were read, if there were any.
    pub(super) fn received(&self, result: io::Result<usize>) -> Result<Option<usize>, Halt> {
        match result {
            Ok(0) if self.shared.is_reset(self.from) => {
                Err(Halt::Failed(self.from, io::ErrorKind::ConnectionReset.into()))
            }
            Ok(0) => Err(Halt::EndOfInput),
            Ok(len) => Ok(Some(len)),
            Err(error) => self.failed(self.from, error).map_or(Ok(None), Err),
        }
    }

    /// Tells whether an error of `side` ends this direction. After a time-out with part of the idle
    /// limit left, the next wait is set to that part.
    fn failed(&self, side: Side, error: io::Error) -> Option<Halt> {
        match (error.kind(), self.shared.limits.idle) {
            (io::ErrorKind::Interrupted, _) => None,
            (io::ErrorKind::WouldBlock, Some(idle)) => {
                let Some(left) = self.shared.left(idle) else { return Some(Halt::Idle) };
                let leg = self.shared.stream(side);
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

/// Whether nothing came in time.
pub(super) fn is_quiet(result: &io::Result<usize>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
