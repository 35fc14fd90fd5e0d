//! Identities: labels as text, and the range of numbers that is a cluster's.
use super::{MAX_VALUE_BYTES, ValueError};
use std::ops::RangeInclusive;
use weft_model::types::Labels;

pub const CLUSTER_LABEL: &str = "io.cilium.k8s.policy.cluster";
pub const NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
pub const SERVICE_ACCOUNT_LABEL: &str = "io.cilium.k8s.policy.serviceaccount";

/// Numbers of a cluster's identities where 255 clusters may be connected: the upper eight of 24 bits are its id.
/// The first 256 are reserved ones and not taken from others.
pub fn identity_range(cluster_id: u32, max_connected_clusters: u32) -> RangeInclusive<u32> {
    let bits = if max_connected_clusters == 511 { 15 } else { 16 };
    let first = cluster_id.wrapping_shl(bits);
    first..=first.wrapping_add((1 << bits) - 1)
}

/// `k8s:app=web;k8s:io.kubernetes.pod.namespace=shop;`: sorted, each ended by a semicolon. Keys carry their source.
pub fn format_labels(labels: &Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value};")).collect()
}

/// The labels of `format_labels`, with their source.
pub fn parse_labels(text: &[u8]) -> Result<Labels, ValueError> {
    if text.len() > MAX_VALUE_BYTES {
        return Err(ValueError::TooLarge);
    }
    let text = std::str::from_utf8(text).map_err(|_| ValueError::Text)?;
    let label = |label: &str| {
        let wrong = || ValueError::Label(label.to_owned());
        let (key, value) = label.split_once('=').ok_or_else(wrong)?;
        let (source, name) = key.split_once(':').ok_or_else(wrong)?;
        if source.is_empty() || name.is_empty() { Err(wrong()) } else { Ok((key.to_owned(), value.to_owned())) }
    };
    text.split(';').filter(|part| !part.is_empty()).map(label).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels_are_written_as_cilium_writes_them() {
        let text = "k8s:app=bar;k8s:io.cilium.k8s.policy.cluster=cluster3;k8s:io.kubernetes.pod.namespace=foo;";
        let labels = parse_labels(text.as_bytes()).unwrap();
        assert_eq!(labels["k8s:app"], "bar");
        assert_eq!(format_labels(&labels), text);
        assert_eq!(parse_labels(b"app=x;"), Err(ValueError::Label("app=x".into())));
        assert_eq!(parse_labels(b"\xff"), Err(ValueError::Text));
    }

    #[test]
    fn every_cluster_has_numbers_of_its_own() {
        assert_eq!(identity_range(3, 255), 0x30000..=0x3ffff);
        assert_eq!(identity_range(3, 511), 0x18000..=0x1ffff);
    }

    proptest! {
        #[test]
        fn any_bytes_are_labels_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_labels(&bytes);
        }

        #[test]
        fn labels_read_back_as_written(
            labels in proptest::collection::btree_map("k8s:[a-z./-]{1,20}", "[a-zA-Z0-9._-]{0,20}", 0..8)
        ) {
            prop_assert_eq!(parse_labels(format_labels(&labels).as_bytes()).unwrap(), labels);
        }
    }
}
