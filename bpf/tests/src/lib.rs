//! weft-bpf-tests.
