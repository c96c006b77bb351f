//! Fuzzes greetings of SOCKS 5.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::wire::socks5_greeting(octets));
