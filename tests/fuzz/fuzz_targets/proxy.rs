//! Fuzzes PROXY headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::wire::proxy(octets));
