//! Threads with fewer mappings than those of std, and the return of unused memory. Not here: the
//! cache of threads (`crate::threads`).

use std::cell::Cell;
use std::ffi::{c_int, c_ulong, c_void};
use std::io;

use crate::sys::cvt_errno;

/// bits/pthreadtypes.h: 36 to 64 octets in glibc and musl.
#[repr(C)]
struct PthreadAttr([u64; 16]);
const _: () = assert!(size_of::<PthreadAttr>() >= 64);

unsafe extern "C" {
    // madvise(2)
    fn madvise(begin: *mut c_void, octets: usize, advice: c_int) -> c_int;
    // malloc_trim(3)
    #[cfg(target_env = "gnu")]
    #[link_name = "malloc_trim"]
    safe fn c_malloc_trim(pad: usize) -> c_int;
    // pthread_create(3)
    fn pthread_attr_init(attr: *mut PthreadAttr) -> c_int;
    fn pthread_attr_setstacksize(attr: *mut PthreadAttr, octets: usize) -> c_int;
    fn pthread_attr_setdetachstate(attr: *mut PthreadAttr, state: c_int) -> c_int;
    fn pthread_attr_destroy(attr: *mut PthreadAttr) -> c_int;
    #[link_name = "pthread_create"]
    fn c_pthread_create(
        thread: *mut c_ulong,
        attr: *const PthreadAttr,
        start: extern "C" fn(*mut c_void) -> *mut c_void,
        arg: *mut c_void,
    ) -> c_int;
}

/// Attributes between pthread_attr_init and pthread_attr_destroy. The reference keeps them in
/// place.
struct Attr<'a>(&'a mut PthreadAttr);

impl<'a> Attr<'a> {
    fn init(attr: &'a mut PthreadAttr) -> io::Result<Self> {
        // SAFETY: `attr` has room for a pthread_attr_t, which the call fills.
        cvt_errno(unsafe { pthread_attr_init(attr) })?;
        Ok(Self(attr))
    }
}

impl Drop for Attr<'_> {
    fn drop(&mut self) {
        // SAFETY: pthread_attr_init has filled them. Nothing uses them afterwards: a thread does
        // not refer to the attributes it was created with.
        let _ = unsafe { pthread_attr_destroy(self.0) };
    }
}

/// Starts a detached thread with `stack` octets of stack and a guard page. Unlike a thread of std
/// it has no second stack for signal handlers, which takes two more mappings and is never used.
/// pthread_create(3).
///
/// A panic of `body` aborts the process.
///
/// # Errors
/// EAGAIN where the system gives no more threads, EINVAL for too small a stack.
pub fn pthread_create(stack: usize, body: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    struct Arg {
        stack: usize,
        body: Box<dyn FnOnce() + Send>,
    }
    extern "C" fn start(arg: *mut c_void) -> *mut c_void {
        // SAFETY: `arg` is the box given to pthread_create below, which calls this once.
        let arg = unsafe { Box::from_raw(arg.cast::<Arg>()) };
        let here = 0_u8;
        // The C library uses a few KiB above this first frame.
        STACK_FLOOR.set((&raw const here).addr().saturating_sub(arg.stack / 2));
        // The box is freed last: the first free in a thread sets up a cache of the allocator.
        (arg.body)();
        std::ptr::null_mut()
    }
    const PTHREAD_CREATE_DETACHED: c_int = 1;
    let mut attr = PthreadAttr([0; 16]);
    let attr = Attr::init(&mut attr)?;
    // SAFETY: `attr` has been filled by pthread_attr_init.
    cvt_errno(unsafe { pthread_attr_setstacksize(attr.0, stack) })?;
    // SAFETY: as above.
    cvt_errno(unsafe { pthread_attr_setdetachstate(attr.0, PTHREAD_CREATE_DETACHED) })?;
    let arg = Box::into_raw(Box::new(Arg { stack, body }));
    let mut thread: c_ulong = 0;
    // SAFETY: `thread` has room for a pthread_t, `attr` is as above, and `start` owns `arg` from
    // now on.
    let errno = unsafe { c_pthread_create(&raw mut thread, attr.0, start, arg.cast()) };
    if errno != 0 {
        // SAFETY: no thread was started, so `arg` is still owned here.
        drop(unsafe { Box::from_raw(arg) });
    }
    cvt_errno(errno)
}

thread_local! {
    /// In a thread of [`pthread_create`]: the address half the stack size below its first frame. 0
    /// in other threads.
    static STACK_FLOOR: Cell<usize> = const { Cell::new(0) };
}

/// Returns the memory of this thread's stack below the frames in use, down to half of its size, to
/// the system. Does nothing in threads that [`pthread_create`] has not started. madvise(2) with
/// MADV_DONTNEED.
#[inline(never)]
pub fn madvise_unused_stack() {
    const MADV_DONTNEED: c_int = 4;
    // Where pages are larger, the kernel refuses a range that is not aligned to them.
    const PAGE: usize = 4_096;
    // More than this frame, and that of the call, take below `here`.
    const MARGIN: usize = 512;
    let here = 0_u8;
    let end = (&raw const here).addr().saturating_sub(MARGIN) / PAGE * PAGE;
    let begin = match STACK_FLOOR.get().next_multiple_of(PAGE) {
        begin if (1..end).contains(&begin) => begin,
        _ => return,
    };
    let octets = end - begin;
    // SAFETY: the range is within this thread's stack, which reaches below the floor, and below all
    // frames. A signal handler that ran on this stack has returned, so it has no frames there.
    let _ = unsafe { madvise(std::ptr::without_provenance_mut(begin), octets, MADV_DONTNEED) };
}

/// Returns free memory of the allocator to the system. malloc_trim(3); musl does so by itself.
pub fn malloc_trim() {
    #[cfg(target_env = "gnu")]
    c_malloc_trim(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_thread_runs_and_drops_its_body() {
        let (sender, receiver) = mpsc::channel();
        pthread_create(128 * 1024, Box::new(move || sender.send(7).unwrap())).unwrap();
        assert_eq!(receiver.recv(), Ok(7));
        assert!(receiver.recv().is_err(), "the sender is gone");
    }

    #[test]
    fn a_thread_that_cannot_be_started_drops_its_body() {
        let (sender, receiver) = mpsc::channel();
        let too_small = pthread_create(1, Box::new(move || sender.send(7).unwrap()));
        assert_eq!(too_small.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(receiver.recv().is_err(), "the sender is gone");
        // More than there are addresses.
        let (sender, receiver) = mpsc::channel();
        let too_large = pthread_create(usize::MAX / 2, Box::new(move || sender.send(7).unwrap()));
        assert!(too_large.is_err());
        assert!(receiver.recv().is_err(), "the sender is gone");
    }
}
