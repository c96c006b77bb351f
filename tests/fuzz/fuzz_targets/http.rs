//! Fuzzes heads of HTTP requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::peers::http(octets));
