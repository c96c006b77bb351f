//! socksd: a SOCKS 4, 4A and 5 server. This file is the map; a module may use only modules on its
//! own floor above it, or on floors below (`tests/layers.rs` checks that). A blank line within a
//! floor keeps rustfmt from sorting by name what has to stand in order of use.
//!
//! ```text
//! accept -> first octet -> decode -> authenticate -> request
//!        -> verdict -> open -> reply -> relay -> one log line
//! ```

// 0 wire: addresses; messages, from octets and to octets, without a socket.
pub mod net;
pub mod wire;

// 1 ground: counts, dates, what std lacks, threads, the log, waiting.
pub mod counts;
pub mod date;
pub mod stats;
pub mod sync;
#[allow(unsafe_code, reason = "the only unsafe module: system calls that std lacks")]
pub mod sys;
pub mod threads;

pub mod log;
pub mod wait;

// 2 decide: who is this, may they, where is that.
pub mod auth;
pub mod policy;
pub mod resolve;

// 3 move: connections and octets.
pub mod dial;
pub mod relay;

// 4 do: CONNECT, BIND, UDP ASSOCIATE.
pub mod command;

// 5 client: one client, first octet to last.
pub mod session;

// 6 server: listeners, slots, signals.
pub mod server;

// 7 face: settings, the start, options and usage, hashes for the users file.
pub mod config;
pub mod start;

pub mod cli;
pub mod hash;
