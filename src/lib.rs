//! socksd: a SOCKS 4, 4A and 5 server. This file is the map. A module uses modules of its own floor
//! and of the floors below it; `tests/socksd/layers.rs` has their order, and checks it.
//!
//! ```text
//! accept -> first octet -> decode -> authenticate -> request
//!        -> verdict -> open -> reply -> relay -> one log line
//! ```

// 0 wire: addresses and messages, without a socket.
// IPv4-mapped addresses; the block of addresses that counts as one client.
pub mod net;
// Decoders and encoders: SOCKS 4 and 5, passwords, UDP headers, PROXY headers, IDENT.
pub mod wire;

// 1 ground: tools for all floors above.
// A count per key.
pub mod counts;
// Calendar dates, for the log and for expiry dates.
pub mod date;
// Counters and histograms for the metrics.
pub mod stats;
// The lock, and a blocking queue.
pub mod sync;
// System calls by header: sockets, descriptors, poll, threads, signals, users, crypt, Landlock.
#[allow(unsafe_code, reason = "the only unsafe module: system calls that std lacks")]
pub mod sys;
// The cache of the threads that serve sessions.
pub mod threads;
// Log lines, as text or JSON, to standard error, a file or syslog, without blocking a session.
pub mod log;
// Waiting for other hosts: until a deadline, the departure of the client or the end of the server;
// all time limits.
pub mod wait;

// 2 decide: the user, the verdict of the rules, the addresses of a name.
// The users file and password checks (users, turns), penalties for failures, IDENT queries.
pub mod auth;
// Rules and lists, verdicts, the methods of a client, `--explain`; which addresses are public (nets).
pub mod policy;
// Host names to addresses, on a pool of threads.
pub mod resolve;

// 3 move: connections and octets.
// Connections to targets: several addresses in turn under one deadline.
pub mod dial;
// Octets and datagrams after the reply: idle limits, half-closes and resets (state), splice(2),
// rates, fragments.
pub mod relay;

// 4 do: CONNECT, BIND, UDP ASSOCIATE.
// From a request to open sockets: the addresses that the rules allow, and those to leave from
// (resources); reply codes (failure), ports, limits of users and rules (quotas).
pub mod command;

// 5 client: one client, first octet to last.
// The handshake, its deadline and all writes before the relay (intake), log lines (record).
pub mod session;

// 6 server: listeners, slots, signals.
// Accepting and back-off (accept), limits on clients and descriptors (slots), drain, metrics.
pub mod server;

// 7 face: settings, the start, options and usage, hashes for the users file.
// Typed settings.
pub mod config;
// The order of the start, its log lines and that of a panic; `--check`; the reload at SIGHUP.
pub mod start;
// The options and their help; from arguments to settings.
pub mod cli;
// `--hash`: from a password to a hash for the users file.
pub mod hash;
