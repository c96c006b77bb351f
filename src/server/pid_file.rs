//! The file with the process ID of the server.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process;

/// Removes the file when it is dropped, unless another process has written its own.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes the process ID and a newline to a new file at `path`, readable by all users.
    ///
    /// # Errors
    /// As unlink(2), open(2) and write(2); EEXIST if `path` exists and is no regular file.
    pub fn write(path: PathBuf) -> io::Result<Self> {
        // A new file never writes through a link, and a device must not be removed.
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
        // Reading anything but a regular file might block.
        if fs::symlink_metadata(&self.0).is_ok_and(|own| own.is_file())
            && fs::read_to_string(&self.0).is_ok_and(|text| text == content())
        {
            // After a change of user the directory may not be writable.
            let _ = fs::remove_file(&self.0);
        }
    }
}

fn content() -> String {
    format!("{}\n", process::id())
}
