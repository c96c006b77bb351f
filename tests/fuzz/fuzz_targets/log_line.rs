//! Fuzzes lines of the log.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::log::log_line(octets));
