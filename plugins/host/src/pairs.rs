//! The wire form of header maps: a count, the lengths, then the names and values, each followed by a NUL.

/// Longer maps are refused, as other hosts do.
pub const MAX_BYTES: usize = 1 << 20;
/// More pairs are refused.
pub const MAX_PAIRS: usize = 1024;

/// Appends the pairs to `out`; they are walked several times. An empty map is nothing at all.
pub fn encode<'a, I: Iterator<Item = (&'a [u8], &'a [u8])>>(pairs: impl Fn() -> I, out: &mut Vec<u8>) {
    let size = encoded_size(pairs());
    if size == 0 {
        return;
    }
    out.reserve(size);
    put_length(out, pairs().count());
    for (name, value) in pairs() {
        put_length(out, name.len());
        put_length(out, value.len());
    }
    for (name, value) in pairs() {
        out.extend_from_slice(name);
        out.push(0);
        out.extend_from_slice(value);
        out.push(0);
    }
}

/// Bytes that `encode` would append.
pub fn encoded_size<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> usize {
    let mut size = 0;
    for (name, value) in pairs {
        size += 8 + name.len() + 1 + value.len() + 1;
    }
    if size == 0 { 0 } else { size + 4 }
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    // Lengths beyond 4 GiB cannot be: both sides bound a map to megabytes.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

/// Reads a map. `None`: it is not exactly one well-formed map within the limits.
pub fn decode(bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    // SDKs send an empty map as nothing, as one NUL, or as a count of zero.
    if bytes.is_empty() || bytes == [0] {
        return Some(Vec::new());
    }
    if bytes.len() > MAX_BYTES {
        return None;
    }
    let count = length_at(bytes, 0)?;
    if count > MAX_PAIRS {
        return None;
    }
    let mut at = 4 + count * 8;
    let mut pairs = Vec::with_capacity(count);
    for index in 0..count {
        let name = field(bytes, &mut at, length_at(bytes, 4 + index * 8)?)?;
        let value = field(bytes, &mut at, length_at(bytes, 8 + index * 8)?)?;
        pairs.push((name, value));
    }
    (at == bytes.len()).then_some(pairs)
}

fn length_at(bytes: &[u8], at: usize) -> Option<usize> {
    let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(four)).ok()
}

fn field<'a>(bytes: &'a [u8], at: &mut usize, length: usize) -> Option<&'a [u8]> {
    let end = at.checked_add(length)?;
    let field = bytes.get(*at..end)?;
    if *bytes.get(end)? != 0 {
        return None;
    }
    *at = end + 1;
    Some(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut out = vec![];
        encode(|| pairs.iter().map(|(n, v)| (n.as_slice(), v.as_slice())), &mut out);
        out
    }

    #[test]
    fn a_map_has_the_bytes_that_the_sdks_expect() {
        let bytes = encoded(&[(b"a".to_vec(), b"bc".to_vec())]);
        assert_eq!(bytes, [1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, b'a', 0, b'b', b'c', 0]);
    }

    #[test]
    fn every_form_of_an_empty_map_is_understood() {
        for empty in [&[][..], &[0], &[0, 0, 0, 0]] {
            assert_eq!(decode(empty), Some(vec![]));
        }
    }

    #[test]
    fn a_map_beyond_the_limits_is_refused() {
        let many = vec![(b"a".to_vec(), vec![]); MAX_PAIRS + 1];
        assert_eq!(decode(&encoded(&many)), None);
        assert!(decode(&encoded(&many[..MAX_PAIRS])).is_some());
        assert_eq!(decode(&encoded(&[(b"a".to_vec(), vec![b'x'; MAX_BYTES])])), None);
        let mut huge_count = vec![255; 4];
        huge_count.extend([0; 64]);
        assert_eq!(decode(&huge_count), None);
    }

    #[test]
    fn bytes_after_the_map_are_refused() {
        let mut bytes = encoded(&[(b"a".to_vec(), b"b".to_vec())]);
        bytes.push(0);
        assert_eq!(decode(&bytes), None);
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(pairs in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(any::<u8>(), 0..40)), 0..30)) {
            let bytes = encoded(&pairs);
            prop_assert_eq!(bytes.len(), encoded_size(pairs.iter().map(|(n, v)| (n.as_slice(), v.as_slice()))));
            let back: Vec<_> = decode(&bytes).unwrap().into_iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            prop_assert_eq!(back, pairs);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn a_small_count_with_wild_lengths_does_not_panic(count in 0u32..4, rest in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = count.to_le_bytes().to_vec();
            bytes.extend(rest);
            let _ = decode(&bytes);
        }
    }
}
