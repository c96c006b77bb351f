//! Fuzzes clients' addresses in the environment.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::settings::peer_env(octets));
