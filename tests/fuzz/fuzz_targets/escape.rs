//! Fuzzes octets of a peer on their way into the log.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::log::escape(octets));
