//! Random numbers for tests, those of the library and those from outside.
#![allow(dead_code, unreachable_pub, reason = "each takes what it needs of this")]

/// An xorshift generator. A failing run can be repeated from its printed seed.
pub struct Random(u64);

impl Random {
    pub fn seeded() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = match std::env::var("SOCKSD_TEST_SEED") {
            Ok(text) => text.parse().expect("SOCKSD_TEST_SEED is a number"),
            Err(_) => now.map_or(1, |since| since.as_secs()) | 1,
        };
        // The test harness shows it if the test fails.
        #[allow(clippy::print_stdout, reason = "a failing run can be repeated from it")]
        {
            println!("SOCKSD_TEST_SEED={seed}");
        }
        Self(seed)
    }

    /// A generator for one of many threads.
    pub fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).expect("a usize fits");
        usize::try_from(self.next() % limit).expect("below a usize")
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Random octets, mostly small ones, which are likely codes and lengths.
    pub fn octets(&mut self, max: usize) -> Vec<u8> {
        let len = self.below(max + 1);
        let mut octet = || {
            let random = self.next().to_le_bytes();
            if random[0] < 128 { random[1] % 8 } else { random[1] }
        };
        (0..len).map(|_| octet()).collect()
    }
}
