//! Fuzzes addresses, blocks and ranges.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::policy::block(octets));
