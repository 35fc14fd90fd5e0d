//! weft-wireguard.
