//! weft-certs.
