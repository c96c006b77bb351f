//! Tests that need the machine to themselves: they measure what the server takes, or take most of
//! the machine. Each waits until no other runs.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)]

#[path = "../common/mod.rs"]
mod common;

mod crowd;
mod memory;
mod soak;
mod waits;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Waits for the turn of a test, which lasts until the guard is dropped.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed has had its turn like any other.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
