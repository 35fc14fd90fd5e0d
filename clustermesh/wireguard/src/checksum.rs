//! The Internet checksum.

use crate::packet::Family;

/// A ones' complement sum. Its pieces must start at even offsets of what is summed; only the last may have an odd length.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::default().add(bytes)
    }

    // Words are summed in the machine's byte order: swapping the result is the same as swapping each word.
    pub(crate) fn add(self, bytes: &[u8]) -> Self {
        let mut sum = self.0;
        let mut words = bytes.chunks_exact(4);
        for word in &mut words {
            sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
        let mut last = [0; 4];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        Self(sum + u64::from(u32::from_ne_bytes(last)))
    }

    fn add_u16(self, value: u16) -> Self {
        Self(self.0 + u64::from(u16::from_ne_bytes(value.to_be_bytes())))
    }

    /// The pseudo-header of TCP or UDP; `header` is an IP header whose addresses are final.
    pub(crate) fn of_pseudo_header(header: &[u8], family: Family, protocol: u8, length: usize) -> Self {
        // A packet is at most 65,535 bytes long, so its transport part is shorter.
        Self::of(&header[family.addresses()]).add_u16(protocol.into()).add_u16(length as u16)
    }

    /// The sum itself, as the field of a packet whose checksum the kernel is to complete.
    pub(crate) fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (sum as u16).to_ne_bytes()
    }

    /// The checksum.
    pub(crate) fn finish(self) -> [u8; 2] {
        self.folded().map(|byte| !byte)
    }

    /// The checksum for UDP, where zero means that there is none.
    pub(crate) fn finish_udp(self) -> [u8; 2] {
        match self.finish() {
            [0, 0] => [0xff, 0xff],
            sum => sum,
        }
    }

    /// Whether data that includes its checksum is intact.
    pub(crate) fn is_valid(self) -> bool {
        self.folded() == [0xff, 0xff]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_the_rfc_1071_example_is_ddf2() {
        assert_eq!(Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).folded(), [0xdd, 0xf2]);
    }

    #[test]
    fn an_odd_byte_counts_as_the_high_half_of_a_word() {
        assert_eq!(Sum::of(&[0x12]).folded(), [0x12, 0x00]);
        assert_eq!(Sum::of(&[1, 2, 3, 4, 5]).folded(), Sum::of(&[1, 2, 3, 4, 5, 0]).folded());
    }

    #[test]
    fn pieces_sum_like_the_whole() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(Sum::of(&bytes[..30]).add(&bytes[30..]).folded(), Sum::of(&bytes).folded());
    }
}
