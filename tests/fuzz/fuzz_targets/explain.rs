//! Fuzzes questions of --explain.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::policy::explain(octets));
