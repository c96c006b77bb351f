//! Fuzzes names to look up.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::peers::host_name(octets));
