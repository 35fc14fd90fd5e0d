//! Attributes of a stream, as plugins read them, and how Envoy encodes their values.
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the host gets a stream's properties from. What the host knows itself (`plugin_name`, `request.*` while the
/// request's headers are at hand, …) it answers first; what a plugin has set it keeps for the plugin as well.
pub trait Properties {
    /// Appends the value at `path` to `out`; `false`: there is none, and `out` is untouched.
    fn get(&self, path: &[&str], out: &mut Vec<u8>) -> bool;

    /// A plugin set this value. Read it back after the callback with `HttpStream::property` instead, if you like.
    fn set(&mut self, path: &[&str], value: &[u8]) {
        let _ = (path, value);
    }
}

/// No properties.
impl Properties for () {
    fn get(&self, _: &[&str], _: &mut Vec<u8>) -> bool {
        false
    }
}

/// Strings and bytes: as they are.
pub fn put_bytes(out: &mut Vec<u8>, value: impl AsRef<[u8]>) {
    out.extend_from_slice(value.as_ref());
}

/// Integers: eight bytes, little-endian.
pub fn put_int(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Unsigned integers: eight bytes, little-endian.
pub fn put_uint(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Floating point: eight bytes, little-endian.
pub fn put_double(out: &mut Vec<u8>, value: f64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// One byte, 0 or 1.
pub fn put_bool(out: &mut Vec<u8>, value: bool) {
    out.push(u8::from(value));
}

/// Durations: nanoseconds, as an integer.
pub fn put_duration(out: &mut Vec<u8>, value: Duration) {
    put_int(out, i64::try_from(value.as_nanos()).unwrap_or(i64::MAX));
}

/// Points in time: nanoseconds since the epoch, as an integer.
pub fn put_time(out: &mut Vec<u8>, value: SystemTime) {
    put_duration(out, value.duration_since(UNIX_EPOCH).unwrap_or_default());
}

/// Lists and maps: the pairs of a header map, which are walked several times.
pub fn put_map<'a, I: Iterator<Item = (&'a [u8], &'a [u8])>>(out: &mut Vec<u8>, pairs: impl Fn() -> I) {
    crate::pairs::encode(pairs, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded_as_envoy_does() {
        let mut out = vec![];
        put_int(&mut out, -2);
        put_bool(&mut out, true);
        put_duration(&mut out, Duration::from_micros(3));
        assert_eq!(out, [0xfe, 255, 255, 255, 255, 255, 255, 255, 1, 0xb8, 0x0b, 0, 0, 0, 0, 0, 0]);
    }
}
