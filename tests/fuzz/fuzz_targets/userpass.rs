//! Fuzzes user names and passwords.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::wire::userpass(octets));
