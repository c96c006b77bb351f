//! The real server from outside, as clients, targets, wrappers and its administrator see it: all
//! tests but those that need the machine or a process to themselves (`tests/alone`,
//! `tests/allocations.rs`). They run as threads of one process, and so change nothing of it.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)]

#[path = "../common/mod.rs"]
mod common;

mod associate;
mod auth;
mod balancer;
mod bind;
mod cli;
mod dns;
mod drain;
mod examples;
mod fail2ban;
mod frugal;
mod fuzz_corpora;
mod hash;
mod ident;
mod install;
mod interop;
mod layers;
mod limits;
mod logging;
mod metrics;
mod policy;
mod privileges;
mod relay;
mod reload;
mod rules;
mod socks4;
mod socks5;
mod whole;
mod wrappers;
