//! weft-flows.
