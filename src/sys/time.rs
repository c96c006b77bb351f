//! The monotonic clock as a number. Not here: the same clock as an `Instant` (std), and dates
//! (`crate::date`).

use std::ffi::{c_int, c_long};
use std::io;
use std::time::Duration;

use crate::sys::cvt;

/// time.h `struct timespec` of plain clock_gettime, the symbol without 64-bit redirection.
#[repr(C)]
struct Timespec {
    sec: c_long,
    nsec: c_long,
}
const _: () = assert!(size_of::<Timespec>() == 2 * size_of::<c_long>());
const CLOCK_MONOTONIC: c_int = 1;

unsafe extern "C" {
    // clock_gettime(3)
    fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
}

/// The time of CLOCK_MONOTONIC. clock_gettime(3).
///
/// # Errors
/// As clock_gettime(3).
pub fn clock_gettime_monotonic() -> io::Result<Duration> {
    let mut time = Timespec { sec: 0, nsec: 0 };
    // SAFETY: `time` is a struct timespec the call may fill.
    cvt(unsafe { clock_gettime(CLOCK_MONOTONIC, &raw mut time) })?;
    let sec = u64::try_from(time.sec).map_err(io::Error::other)?;
    let nsec = u32::try_from(time.nsec).map_err(io::Error::other)?;
    Ok(Duration::new(sec, nsec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_advances() {
        let earlier = clock_gettime_monotonic().unwrap();
        std::thread::sleep(Duration::from_millis(1));
        assert!(earlier + Duration::from_millis(1) <= clock_gettime_monotonic().unwrap());
    }
}
