//! What a direction borrows while it is busy, and gives back when it goes quiet: buffers to copy
//! through and pipes to splice(2) through.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::sys;
use crate::threads::lock;

/// Octets of a buffer.
pub const BUFFER: usize = 64 * 1024;

/// Buffers that are kept for the next who needs one.
const BUFFERS_KEPT: usize = 32;

/// Octets a pipe is to hold.
pub const PIPE: usize = 1 << 20;

/// Buffers and pipes.
#[derive(Debug)]
pub struct Pool {
    buffers: Mutex<Vec<Box<[u8]>>>,
    pipes: Mutex<Vec<Pipe>>,
    /// Shared with every pipe there is.
    counter: Arc<()>,
    /// Most pipes at once, lent or kept.
    max: AtomicUsize,
}

impl Pool {
    /// With nothing in it. It will never have more than so many pipes.
    #[must_use]
    pub fn new(pipes: usize) -> Self {
        Self {
            buffers: Mutex::default(),
            pipes: Mutex::default(),
            counter: Arc::default(),
            max: AtomicUsize::new(pipes),
        }
    }

    /// A buffer of [`BUFFER`] octets, whatever they are.
    pub fn buffer(&self) -> Box<[u8]> {
        let kept = lock(&self.buffers).pop();
        kept.unwrap_or_else(|| vec![0; BUFFER].into())
    }

    /// Takes a buffer back.
    pub fn keep_buffer(&self, buffer: Box<[u8]>) {
        let mut buffers = lock(&self.buffers);
        if buffers.len() < BUFFERS_KEPT {
            buffers.push(buffer);
        }
    }

    /// An empty pipe, if there is one to be had.
    pub fn pipe(&self) -> Option<Pipe> {
        let mut pipes = lock(&self.pipes);
        let kept = pipes.pop();
        if kept.is_some() || Arc::strong_count(&self.counter) > self.max.load(Ordering::Relaxed) {
            return kept;
        }
        let counter = Arc::clone(&self.counter);
        drop(pipes);
        let (reader, writer) = io::pipe().ok()?;
        // A user who has too many gets them small, pipe(7): that is no better than copying.
        let size = sys::set_pipe_size(&writer, PIPE).ok()?;
        (size >= BUFFER).then_some(Pipe { reader, writer, held: 0, _counter: counter })
    }

    /// Takes a pipe back. What one session has left in it must not get to another.
    pub fn keep_pipe(&self, pipe: Pipe) {
        if pipe.held == 0 && self.max.load(Ordering::Relaxed) > 0 {
            lock(&self.pipes).push(pipe);
        }
    }

    /// Has no pipe for anybody any more: what they are for does not work here.
    pub fn give_up_splice(&self) {
        self.max.store(0, Ordering::Relaxed);
        lock(&self.pipes).clear();
    }
}

/// A pipe, through which octets go from one socket to another without being copied.
#[derive(Debug)]
pub struct Pipe {
    reader: io::PipeReader,
    writer: io::PipeWriter,
    held: usize,
    _counter: Arc<()>,
}

impl Pipe {
    /// How many octets are in it.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes in what `from` has, up to `max` octets; returns how many that were. 0 is the end of
    /// input, or there is an urgent octet to be read.
    ///
    /// # Errors
    /// As splice(2); EINVAL where `from` is nothing to splice from.
    pub fn fill(&mut self, from: &impl AsFd, max: usize) -> io::Result<usize> {
        let len = sys::splice(from, &self.writer, max)?;
        self.held += len;
        Ok(len)
    }

    /// Writes to `to` what it takes of what is held; returns how many octets that were.
    ///
    /// # Errors
    /// As splice(2).
    pub fn drain(&mut self, to: &impl AsFd) -> io::Result<usize> {
        let len = sys::splice(&self.reader, to, self.held)?;
        self.held -= len;
        Ok(len)
    }
}
