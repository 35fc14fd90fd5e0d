//! weft-lab.
