//! Fuzzes names of hosts and domains.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::policy::name(octets));
