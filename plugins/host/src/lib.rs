//! weft-plugin-host.
