//! Fuzzes requests of SOCKS 4 and 4A.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::wire::socks4(octets));
