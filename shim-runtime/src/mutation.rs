//! Broken input for tests: seeded changes of sound bytes, so that a run that failed can be had again.

/// How many rounds a loop over broken input makes: `SHIM_MUTATIONS` times the usual number where that is set.
pub fn rounds(usual: usize) -> usize {
    let times = std::env::var("SHIM_MUTATIONS").ok().and_then(|times| times.parse().ok());
    usual.saturating_mul(times.unwrap_or(1))
}

/// A stream of numbers that look random and are the same for the same seed.
#[derive(Clone, Debug)]
pub struct Mutations(u64);

impl Mutations {
    /// Begins a stream.
    pub fn seeded(seed: u64) -> Self {
        // Zero is the one state that xorshift never leaves.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next number, below `limit`; 0 where nothing is below it.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() >> 16) as usize % limit.max(1)
    }

    /// Bytes of no meaning.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.number() as u8).take(length).collect()
    }

    /// A copy with a few changes: bits flipped, bytes replaced by those at the edges of number ranges, parts
    /// taken out, doubled or put elsewhere, the end cut off.
    pub fn change(&mut self, sound: &[u8]) -> Vec<u8> {
        let mut bytes = sound.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let end = (at + 1 + self.below(8)).min(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => {
                    let part = self.bytes(1 + end % 4);
                    bytes.splice(at..at, part);
                }
                _ if bytes.is_empty() => {}
                2 => bytes[at] ^= 1 << self.below(8),
                3 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                4 => drop(bytes.drain(at..end)),
                _ => {
                    let part = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, part);
                }
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_changes_and_another_one_others() {
        let run = |seed| {
            let mut mutations = Mutations::seeded(seed);
            (0..100).map(|_| mutations.change(b"some sound bytes")).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }
}
