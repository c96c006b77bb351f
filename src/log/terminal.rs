//! A terminal, which takes lines on a thread of its own: a write to it waits for as long as its user
//! has stopped the output, and the open file that a shell shares must not be told not to wait.

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

/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// A terminal to write to.
pub(crate) struct Terminal {
    file: Arc<File>,
    /// There from the first line on: a thread must not run before privileges are given up.
    lines: Option<Arc<Lines>>,
}

/// The lines on their way to the terminal. Each has its place here until it is written.
#[derive(Default)]
pub(crate) struct Lines {
    queue: Mutex<VecDeque<Vec<u8>>>,
    changed: Condvar,
}

impl Terminal {
    pub(crate) fn new(file: File) -> Self {
        Self { file: Arc::new(file), lines: None }
    }

    /// Puts a line on its way; tells whether there was room for it.
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

    /// Starts the thread that writes.
    fn start(&self) -> io::Result<Arc<Lines>> {
        let lines = Arc::new(Lines::default());
        let (file, written) = (Arc::clone(&self.file), Arc::clone(&lines));
        thread::Builder::new().name("log".into()).spawn(move || written.write_to(&file))?;
        Ok(lines)
    }

    /// The lines on their way, if there ever were any.
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
            // A terminal that is gone has no reader who could miss the line.
            let _ = file.write_all(&line);
            queue = lock(&self.queue);
            queue.pop_front();
            self.changed.notify_all();
        }
    }

    /// Waits until all are written, but not for a terminal that is stopped.
    pub(crate) fn flush(&self) {
        let queue = lock(&self.queue);
        let _ = self.changed.wait_timeout_while(queue, LAST_LINES, |queue| !queue.is_empty());
    }
}
