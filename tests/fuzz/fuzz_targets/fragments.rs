//! Fuzzes sequences of fragments.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::peers::fragments(octets));
