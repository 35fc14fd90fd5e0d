//! weft-clustermesh-core.
