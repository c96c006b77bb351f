//! A terminal as a log, with a thread of its own for the writing: a write blocks while the user has
//! stopped the output, and O_NONBLOCK would change the open file for the shell too.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::sync::lock;

/// Most lines that wait for the terminal.
const LINES_MAX: usize = 256;

/// Time that the terminal has for its last lines at the end of the process.
const LAST_LINES: Duration = Duration::from_secs(1);

/// A terminal to write to.
pub(crate) struct Terminal {
    file: Arc<File>,
    /// `None` before the first line: no thread may run until privileges are given up.
    lines: Option<Arc<Lines>>,
}

/// The lines for the terminal. Each keeps its place until it is written.
#[derive(Default)]
pub(crate) struct Lines {
    queue: Mutex<VecDeque<Vec<u8>>>,
    changed: Condvar,
}

impl Terminal {
    pub(crate) fn new(file: File) -> Self {
        Self { file: Arc::new(file), lines: None }
    }

    /// Queues a line. Returns whether there was room for it.
    pub(crate) fn send(&mut self, line: Vec<u8>) -> bool {
        if self.lines.is_none() {
            self.lines = self.start().ok();
        }
        let Some(lines) = &self.lines else { return false };
        let mut queue = lock(&lines.queue);
        let has_room = queue.len() < LINES_MAX;
        if has_room {
            queue.push_back(line);
            lines.changed.notify_all();
        }
        has_room
    }

    /// Starts the thread that writes the lines.
    fn start(&self) -> io::Result<Arc<Lines>> {
        let lines = Arc::new(Lines::default());
        let (file, written) = (Arc::clone(&self.file), Arc::clone(&lines));
        thread::Builder::new().name("log".into()).spawn(move || written.write_to(&file))?;
        Ok(lines)
    }

    /// The lines, from the first one on.
    pub(crate) fn started(&self) -> Option<Arc<Lines>> {
        self.lines.clone()
    }
}

impl Lines {
    fn write_to(&self, mut file: &File) {
        let mut queue = lock(&self.queue);
        loop {
            let waited = self.changed.wait_while(queue, |queue| queue.is_empty());
            queue = waited.unwrap_or_else(PoisonError::into_inner);
            let line = queue.front_mut().map(mem::take).unwrap_or_default();
            drop(queue);
            // A terminal that fails is gone, and has no reader.
            let _ = file.write_all(&line);
            queue = lock(&self.queue);
            queue.pop_front();
            self.changed.notify_all();
        }
    }

    /// Waits until all lines are written, or [`LAST_LINES`] for a terminal that is stopped.
    pub(crate) fn flush(&self) {
        let queue = lock(&self.queue);
        let _ = self.changed.wait_timeout_while(queue, LAST_LINES, |queue| !queue.is_empty());
    }
}
