//! weft-model.
