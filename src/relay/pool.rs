//! Buffers to copy through and pipes to splice(2) through. A direction borrows them while it is
//! busy and gives them back when it goes quiet; when that is, it decides itself.

use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::sync::Mutex;

use crate::sync::lock;
use crate::sys;

/// Octets of a buffer.
pub const BUFFER: usize = 64 * 1024;

/// Unused buffers that are kept.
const BUFFERS_KEPT: usize = 32;

/// Capacity of a pipe in octets, the most for a user without privileges. Half of it costs a third
/// more CPU per octet.
pub const PIPE: usize = 1 << 20;

/// Unused pipes that are kept. Every pipe counts against a limit of the user, pipe(7).
const PIPES_KEPT: usize = 8;

/// Buffers and pipes.
#[derive(Debug)]
pub struct Pool {
    buffers: Mutex<Vec<Box<[u8]>>>,
    pipes: Mutex<Pipes>,
}

#[derive(Debug)]
struct Pipes {
    kept: Vec<Pipe>,
    /// Pipes in existence, borrowed or kept.
    count: usize,
    /// Pipes allowed.
    max: usize,
}

impl Pool {
    /// An empty pool, which will never have more than `pipes` pipes.
    #[must_use]
    pub fn new(pipes: usize) -> Self {
        let pipes = Pipes { kept: Vec::new(), count: 0, max: pipes };
        Self { buffers: Mutex::default(), pipes: Mutex::new(pipes) }
    }

    /// Lends a buffer of [`BUFFER`] octets of any value.
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

    /// Lends an empty pipe, if one can be had. It must be given back in any case.
    pub fn pipe(&self) -> Option<Pipe> {
        let mut pipes = lock(&self.pipes);
        let kept = pipes.kept.pop();
        if kept.is_some() || pipes.count >= pipes.max {
            return kept;
        }
        // Out of descriptors now does not mean later.
        let pipe = Pipe::new().ok()?;
        if sys::pipe_size(&pipe.writer).is_ok_and(|size| size >= BUFFER) {
            pipes.count += 1;
            return Some(pipe);
        }
        // At the limit of the user pipes are small, and no better than copying.
        pipes.max = pipes.count;
        None
    }

    /// Takes a pipe back. Octets left in it must not reach another session.
    pub fn give_back(&self, pipe: Pipe) {
        let mut pipes = lock(&self.pipes);
        if pipe.held == 0 && pipes.kept.len() < PIPES_KEPT && pipes.max > 0 {
            pipes.kept.push(pipe);
        } else {
            pipes.count = pipes.count.saturating_sub(1);
        }
    }

    /// Lends no more pipes if `error`, from splice(2), means that it does not work on this system.
    /// Any other error concerns one socket.
    pub fn give_up_splice(&self, error: &io::Error) {
        if sys::is_missing_or_forbidden(error) {
            let mut pipes = lock(&self.pipes);
            pipes.max = 0;
            pipes.kept.clear();
        }
    }
}

/// Whether `error`, from splice(2), means that these sockets have to be copied between.
#[must_use]
pub fn has_to_copy(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported)
}

/// A pipe, through which octets go from one socket to another without being copied.
#[derive(Debug)]
pub struct Pipe {
    reader: io::PipeReader,
    writer: io::PipeWriter,
    held: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        // Where that is not allowed, the ordinary size will do.
        let _ = sys::set_pipe_size(&writer, PIPE);
        Ok(Self { reader, writer, held: 0 })
    }

    /// Octets in the pipe.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves up to `max` octets from `from` into the pipe, and returns how many. 0 is the end of
    /// input, or an urgent octet comes next.
    ///
    /// # Errors
    /// As splice(2); EINVAL if `from` cannot be spliced from.
    pub fn fill(&mut self, from: &impl AsFd, max: usize) -> io::Result<usize> {
        let len = sys::splice(from, &self.writer, max)?;
        self.held += len;
        Ok(len)
    }

    /// Moves octets from the pipe to `to`, and returns how many.
    ///
    /// # Errors
    /// As splice(2); EINVAL if `to` cannot be spliced to.
    pub fn drain(&mut self, to: &impl AsFd) -> io::Result<usize> {
        let len = sys::splice(&self.reader, to, self.held)?;
        self.held -= len;
        Ok(len)
    }
    /// Copies octets from the pipe into `octets`, and returns how many.
    ///
    /// # Errors
    /// As read(2).
    pub fn read(&mut self, octets: &mut [u8]) -> io::Result<usize> {
        let len = self.reader.read(octets)?;
        self.held = self.held.saturating_sub(len);
        Ok(len)
    }
}
