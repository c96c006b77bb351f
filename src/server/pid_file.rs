//! The file that tells others which process the server is.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process;

/// The file, removed when this is dropped, unless another process has written its own by then.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes the process number and a newline to the file at `path`, which is made anew, readable
    /// by all.
    ///
    /// # Errors
    /// As unlink(2), open(2) and write(2); EEXIST where `path` is there and no regular file.
    pub fn write(path: PathBuf) -> io::Result<Self> {
        // A file in place of a link is not written through, and a device is not taken away.
        if fs::symlink_metadata(&path).is_ok_and(|old| old.is_file()) {
            fs::remove_file(&path)?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path)?;
        let written = Self(path);
        file.write_all(content().as_bytes())?;
        Ok(written)
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Anything else than a file may keep its reader waiting.
        if fs::symlink_metadata(&self.0).is_ok_and(|own| own.is_file())
            && fs::read_to_string(&self.0).is_ok_and(|text| text == content())
        {
            // A directory that may not be written to any more keeps it.
            let _ = fs::remove_file(&self.0);
        }
    }
}

fn content() -> String {
    format!("{}\n", process::id())
}
