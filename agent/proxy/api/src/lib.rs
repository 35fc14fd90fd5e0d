//! weft-proxy-api.
