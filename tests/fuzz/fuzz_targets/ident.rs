//! Fuzzes answers of the Identification Protocol.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::wire::ident(octets));
