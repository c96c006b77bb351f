//! What holds of each decoder and parser, whatever octets it is given: a function for each, which
//! panics where that does not hold. The fuzzer calls them with octets of its own making, `make
//! test` with those of `tests/fuzz/corpus/`. Sockets, files and whole sessions are not here.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a panic is how a target fails"
)]
#![allow(unreachable_pub, reason = "a library to the fuzzer, a module to the tests")]

pub mod log;
pub mod peers;
pub mod policy;
pub mod settings;
pub mod wire;

/// What is called with any octets.
pub type Target = fn(&[u8]);

/// All targets by the names that `fuzz_targets/` and `corpus/` have for them.
pub const ALL: [(&str, Target); 22] = [
    ("block", policy::block),
    ("cli", settings::cli),
    ("date", settings::date),
    ("escape", log::escape),
    ("explain", policy::explain),
    ("fragments", peers::fragments),
    ("host_name", peers::host_name),
    ("http", peers::http),
    ("ident", wire::ident),
    ("list", policy::list),
    ("log_line", log::log_line),
    ("name", policy::name),
    ("password", settings::password),
    ("peer_env", settings::peer_env),
    ("proxy", wire::proxy),
    ("rules", policy::rules),
    ("socks4", wire::socks4),
    ("socks5_greeting", wire::socks5_greeting),
    ("socks5_request", wire::socks5_request),
    ("udp", wire::udp),
    ("userpass", wire::userpass),
    ("users", settings::users),
];

/// Asserts that a text is fit for a terminal and a log: one line without a control character.
pub fn assert_plain(text: &str) {
    assert!(!text.contains(char::is_control), "{text:?}");
}
