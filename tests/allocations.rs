//! What is relayed is passed on without a single allocation. The only test here: whatever else ran
//! in this process would be counted too.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use socksd::relay::{End, RelayLimits, Relays, Stopper, Traffic, Tunnel};
use socksd::threads::Threads;

/// The system's allocator, with its calls counted.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[allow(unsafe_code, reason = "there is no other way to see allocations")]
// SAFETY: the system's allocator does all that is asked for.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller warrants the same to this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, octets: *mut u8, layout: Layout) {
        // SAFETY: as above; it is this allocator that `octets` come from.
        unsafe { System.dealloc(octets, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How long anything that ought to happen may take.
const SOON: Duration = Duration::from_secs(5);

/// Octets sent at once where there is much to send; they fit into the buffers of a socket.
const MUCH: usize = 64 * 1024;

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    near.set_read_timeout(Some(SOON)).unwrap();
    near.set_nodelay(true).unwrap();
    (near, far)
}

/// Sends `octets` both ways at once, so many times.
fn exchange(mut ends: [&TcpStream; 2], octets: &mut [u8], times: usize) {
    for _ in 0..times {
        for end in &mut ends {
            end.write_all(octets).unwrap();
        }
        for end in &mut ends {
            end.read_exact(octets).unwrap();
        }
    }
}

#[test]
fn nothing_is_allocated_for_what_is_relayed_however_it_is_passed() {
    for pipes in [0, 2] {
        let threads = Threads::default();
        let relays = Relays::new(pipes);
        let ((client, near), (target, far)) = (pair(), pair());
        let (tx, ended) = mpsc::channel();
        let tunnel = Tunnel {
            client: near.into(),
            target: far.into(),
            helper: threads.reserve().unwrap(),
            limits: RelayLimits { idle: Some(10 * SOON), linger: SOON, rates: Vec::new() },
            traffic: Arc::<Traffic>::default(),
            stopper: Stopper::default(),
            done: Box::new(move |end| tx.send(end).unwrap()),
        };
        threads.reserve().unwrap().run(move || relays.run(tunnel));

        let ends = [&client, &target];
        let mut octets = vec![7; MUCH];
        let (small, much) = octets.split_at_mut(100);
        let mut pass = |small_ones, large_ones| {
            exchange(ends, small, small_ones);
            exchange(ends, much, large_ones);
            // Long enough for both directions to give back what they have borrowed.
            thread::sleep(Duration::from_millis(500));
        };
        // The second thread, and what busy directions borrow, are there from the first time on.
        pass(20, 20);
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        for _ in 0..3 {
            pass(2_000, 100);
        }
        let allocations = ALLOCATIONS.load(Ordering::SeqCst) - before;
        assert_eq!(allocations, 0, "with {pipes} pipes");
        assert!(before > 0, "this test has gone blind");

        drop((client, target));
        let end = ended.recv_timeout(SOON).unwrap();
        assert!(matches!(end, End::Closed(_)), "{end:?}");
    }
}
