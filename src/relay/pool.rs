//! What a direction borrows while it is busy, and gives back when it goes quiet: buffers to copy
//! through and pipes to splice(2) through.

use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::sync::Mutex;

use crate::sync::lock;
use crate::sys;

/// Octets of a buffer.
pub const BUFFER: usize = 64 * 1024;

/// Buffers that are kept for the next who needs one.
const BUFFERS_KEPT: usize = 32;

/// Octets a pipe is to hold: all that a user without privileges may have. With half of that an octet
/// takes a third more of the processors.
pub const PIPE: usize = 1 << 20;

/// Pipes that are kept. All that there are count against what the user may have, pipe(7).
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
    /// How many there are, lent or kept, and may be.
    count: usize,
    max: usize,
}

impl Pool {
    /// With nothing in it. It will never have more than so many pipes.
    #[must_use]
    pub fn new(pipes: usize) -> Self {
        let pipes = Pipes { kept: Vec::new(), count: 0, max: pipes };
        Self { buffers: Mutex::default(), pipes: Mutex::new(pipes) }
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

    /// An empty pipe, if there is one to be had. It is to be given back in any case.
    pub fn pipe(&self) -> Option<Pipe> {
        let mut pipes = lock(&self.pipes);
        let kept = pipes.kept.pop();
        if kept.is_some() || pipes.count >= pipes.max {
            return kept;
        }
        // Where there is no descriptor now, there may be one later.
        let pipe = Pipe::new().ok()?;
        if sys::pipe_size(&pipe.writer).is_ok_and(|size| size >= BUFFER) {
            pipes.count += 1;
            return Some(pipe);
        }
        // A user who has too many gets small ones, which are no better than copying.
        pipes.max = pipes.count;
        None
    }

    /// Takes a pipe back. What one session has left in it must not get to another.
    pub fn give_back(&self, pipe: Pipe) {
        let mut pipes = lock(&self.pipes);
        if pipe.held == 0 && pipes.kept.len() < PIPES_KEPT && pipes.max > 0 {
            pipes.kept.push(pipe);
        } else {
            pipes.count = pipes.count.saturating_sub(1);
        }
    }

    /// Has no pipe for anybody any more if `error`, of splice(2), says that it does not work here.
    /// Any other is a matter of one socket.
    pub fn give_up_splice(&self, error: &io::Error) {
        const EPERM: i32 = 1;
        const ENOSYS: i32 = 38;
        if matches!(error.raw_os_error(), Some(EPERM | ENOSYS)) {
            let mut pipes = lock(&self.pipes);
            pipes.max = 0;
            pipes.kept.clear();
        }
    }
}

/// Whether `error` says that these sockets cannot be spliced, while they may well be copied.
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
        // One of the size that pipes have anyway will do where that is not allowed.
        let _ = sys::set_pipe_size(&writer, PIPE);
        Ok(Self { reader, writer, held: 0 })
    }

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
    /// As splice(2); EINVAL where `to` is nothing to splice to.
    pub fn drain(&mut self, to: &impl AsFd) -> io::Result<usize> {
        let len = sys::splice(&self.reader, to, self.held)?;
        self.held -= len;
        Ok(len)
    }
    /// Reads into `octets` some of what is held; returns how many octets that were.
    ///
    /// # Errors
    /// As read(2).
    pub fn read(&mut self, octets: &mut [u8]) -> io::Result<usize> {
        let len = self.reader.read(octets)?;
        self.held = self.held.saturating_sub(len);
        Ok(len)
    }
}
