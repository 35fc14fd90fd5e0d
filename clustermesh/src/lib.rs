//! weft-clustermesh.
